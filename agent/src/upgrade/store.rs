//! Versions of the runtime on the disk: each in a folder that is named by the program's digest.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use ring::digest::{Context, SHA256};
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use vm_agent_schemas::ids::{Digest, Nonce};
use vm_agent_schemas::units::ByteSize;

use super::is_sha256;

/// What each program is called in its folder.
const PROGRAM: &str = "vm-agent-runtime";
/// Largest program that is taken: far more than one needs, and what no disk is filled by.
const SIZE_MAX: ByteSize = ByteSize::from_mib(256);
/// How long a program may take to say its version.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// The pause after which a program is tried again that was still held open by a process that began just then.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// How much is read at once, in bytes.
const BLOCK: usize = 32 * 1024;

/// Why a program can't be taken into use.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    #[error("it is to have {0} bytes, and {SIZE_MAX} is the most that is taken")]
    TooLarge(ByteSize),
    #[error("`{0}` is no SHA-256 in lower-case hexadecimal digits")]
    NoDigest(Digest),
    #[error("it is to have {expected} bytes, and {came} came")]
    Size { expected: u64, came: u64 },
    #[error("its SHA-256 is {came}, not the one that was announced")]
    Sha256 { came: Digest },
    #[error("the program did not come or could not be stored")]
    Io(#[from] io::Error),
    #[error("it can't be run here")]
    Run(#[source] io::Error),
    #[error("called with --version it did not end within 10 s")]
    Hangs,
    #[error("called with --version it failed: {0}")]
    Fails(ExitStatus),
}

/// Stores a program, if it is the one that was announced. Until then it has another name, and what is left of
/// it when that fails is removed.
pub(super) fn store(
    program: impl Read,
    versions: &Path,
    size: ByteSize,
    sha256: &Digest,
) -> Result<PathBuf, UpgradeError> {
    if size > SIZE_MAX {
        return Err(UpgradeError::TooLarge(size));
    }
    if !is_sha256(sha256) {
        return Err(UpgradeError::NoDigest(sha256.clone()));
    }
    let folder = versions.join(sha256.as_str());
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let (path, new) = (folder.join(PROGRAM), folder.join(format!("new-{}", Nonce::generate())));
    let stored = write(program, &new, size.bytes(), sha256).and_then(|()| Ok(fs::rename(&new, &path)?));
    if stored.is_err() {
        // It was not made, or is of no use.
        let _ = fs::remove_file(&new);
        // Another one may be in it.
        let _ = fs::remove_dir(&folder);
    }
    stored.map(|()| path)
}

fn write(program: impl Read, path: &Path, size: u64, sha256: &Digest) -> Result<(), UpgradeError> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let (mut context, mut came) = (Context::new(&SHA256), 0);
    let mut block = vec![0; BLOCK];
    let mut program = program.take(size + 1);
    loop {
        let count = program.read(&mut block)?;
        if count == 0 {
            break;
        }
        context.update(&block[..count]);
        came += count as u64;
        file.write_all(&block[..count])?;
    }
    if came != size {
        return Err(UpgradeError::Size { expected: size, came });
    }
    let came = Digest::of_sha256(&context.finish());
    if came != *sha256 {
        return Err(UpgradeError::Sha256 { came });
    }
    file.set_permissions(Permissions::from_mode(0o700))?;
    Ok(file.sync_all()?)
}

/// Whether a program runs at all: it says its version.
pub(super) async fn check(program: &Path) -> Result<(), UpgradeError> {
    let check = async {
        loop {
            let mut command = Command::new(program);
            command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            match command.kill_on_drop(true).status().await {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => sleep(BUSY_PAUSE).await,
                Err(error) => return Err(UpgradeError::Run(error)),
                Ok(status) if status.success() => return Ok(()),
                Ok(status) => return Err(UpgradeError::Fails(status)),
            }
        }
    };
    timeout(CHECK_LIMIT, check).await.unwrap_or(Err(UpgradeError::Hangs))
}

/// Removes all versions but these.
pub(super) fn keep_only(versions: &Path, kept: &[&Path]) {
    let Ok(entries) = fs::read_dir(versions) else { return };
    for folder in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if !kept.iter().any(|program| program.starts_with(&folder))
            && let Err(error) = fs::remove_dir_all(&folder)
        {
            tracing::warn!("`{}` can't be removed: {error}", folder.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(program: &[u8], size: u64, sha256: &Digest) -> (tempfile::TempDir, Result<PathBuf, String>) {
        let place = tempfile::tempdir().unwrap();
        let result = store(program, &place.path().join("versions"), ByteSize::from_bytes(size), sha256);
        (place, result.map_err(|error| error.to_string()))
    }

    #[tokio::test]
    async fn a_program_that_is_the_announced_one_is_stored_and_runs() {
        let program = b"#!/bin/sh\n[ \"$1\" = --version ]\n";
        let (place, path) = stored(program, program.len() as u64, &Digest::of(program));
        let path = path.unwrap();
        let sha256 = Digest::of(program);
        assert_eq!(path, place.path().join("versions").join(sha256.as_str()).join("vm-agent-runtime"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        check(&path).await.unwrap();
    }

    #[test]
    fn another_program_than_the_announced_one_is_not_kept() {
        let sha256 = Digest::of(b"right");
        let wrong = [
            (b"wrong".as_slice(), 5, "its SHA-256 is"),
            (b"right and more", 5, "it is to have 5 bytes, and 6 came"),
            (b"rig", 5, "it is to have 5 bytes, and 3 came"),
            (b"right", 1 << 40, "the most that is taken"),
        ];
        for (program, size, sentence) in wrong {
            let (place, result) = stored(program, size, &sha256);
            let error = result.unwrap_err();
            assert!(error.contains(sentence), "{error}");
            assert!(!place.path().join("versions").join(sha256.as_str()).exists());
        }
        let (_, result) = stored(b"right", 5, &Digest::from("../../etc".to_owned()));
        assert_eq!(result.unwrap_err(), "`../../etc` is no SHA-256 in lower-case hexadecimal digits");
    }

    #[tokio::test]
    async fn a_program_that_does_not_run_is_told_from_one_that_does() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("program");
        for (program, sentence) in
            [("#!/bin/sh\nexit 3\n", "called with --version it failed: exit status: 3"), ("", "it can't be run here")]
        {
            fs::write(&path, program).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
            assert_eq!(check(&path).await.unwrap_err().to_string(), sentence);
        }
    }

    #[test]
    fn of_the_versions_those_in_use_are_kept() {
        let place = tempfile::tempdir().unwrap();
        for name in ["1", "2", "3"] {
            fs::create_dir_all(place.path().join(name)).unwrap();
        }
        keep_only(place.path(), &[&place.path().join("2/vm-agent-runtime"), Path::new("/bin/runtime")]);
        let left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["2"]);
    }
}
