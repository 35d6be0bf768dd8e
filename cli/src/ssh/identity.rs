//! The host key that `ssh-proxy` shows. It tells nobody anything that the pipe between the client and
//! `ssh-proxy` does not, but clients want one that stays the same.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use tempfile::NamedTempFile;

use super::config::KEY_ALIAS;
use crate::exit::{CommandError, Exit};

/// The file with the host key.
const KEY_FILE: &str = "ssh_host_ed25519_key";
/// The file that makes it known.
const KNOWN_HOSTS_FILE: &str = "ssh_known_hosts";

/// Where the host key is made known.
pub(crate) fn known_hosts(folder: &Path) -> PathBuf {
    folder.join(KNOWN_HOSTS_FILE)
}

/// The host key in a folder: made when there is none, and made known beside it.
pub(crate) fn load(folder: &Path) -> Result<PrivateKey, CommandError> {
    let path = folder.join(KEY_FILE);
    let failed =
        |error: io::Error| CommandError::io(format_args!("the host key `{}` can't be had", path.display()), &error);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(folder, &path).and_then(|()| std::fs::read_to_string(&path))
        }
        read => read,
    };
    let key = PrivateKey::from_openssh(text.map_err(failed)?).map_err(|error| {
        CommandError::new(Exit::FAILURE, format!("the host key `{}` is not understood: {error}", path.display()))
            .hint("delete it: it is made anew, and `vm-agent ssh-config` makes it known")
    })?;
    publish(folder, &key).map_err(failed)?;
    Ok(key)
}

/// Makes a key, unless somebody else does meanwhile.
fn make(folder: &Path, path: &Path) -> io::Result<()> {
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| io::Error::other("the system gives no random numbers"))?;
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    std::fs::create_dir_all(folder)?;
    // Only its owner may read a temporary file, and it stays so.
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(key.to_openssh(LineEnding::LF).map_err(io::Error::other)?.as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
        _ => Ok(()),
    }
}

/// Writes the file of known hosts, if it says anything else.
fn publish(folder: &Path, key: &PrivateKey) -> io::Result<()> {
    let path = known_hosts(folder);
    let line = format!("{KEY_ALIAS} {}\n", key.public_key().to_openssh().map_err(io::Error::other)?);
    if std::fs::read_to_string(&path).is_ok_and(|text| text == line) {
        return Ok(());
    }
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(line.as_bytes())?;
    file.persist(&path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_host_key_is_made_once_and_is_nobody_elses_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new");
        let key = load(&folder).unwrap();
        assert_eq!(load(&folder).unwrap(), key);
        let mode = std::fs::metadata(folder.join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let known = std::fs::read_to_string(known_hosts(&folder)).unwrap();
        assert_eq!(known, format!("vm-agent {}\n", key.public_key().to_openssh().unwrap()));
    }

    #[test]
    fn a_key_that_is_no_key_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(KEY_FILE), "nonsense").unwrap();
        let error = load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("is not understood"), "{error}");
        assert_eq!(std::fs::read_to_string(dir.path().join(KEY_FILE)).unwrap(), "nonsense");
    }
}
