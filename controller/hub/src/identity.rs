//! The hub's own certificate, by which runtimes know it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use vm_agent_schemas::ids::Digest;

/// Key and certificate, in one file so that there is never one without the other.
const FILE: &str = "hub.pem";

/// The name in the certificate. Nobody checks it: runtimes trust the pin, and nothing else.
const SUBJECT: &str = "vm-agent-hub";

/// A key and the self-signed certificate over it, made once and kept.
pub struct Identity {
    key: PrivateKeyDer<'static>,
    certificate: CertificateDer<'static>,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file can't be read or written.
    #[error("can't read or write the hub's key in {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "{} does not hold the hub's key and certificate; restore it from a backup, or remove it and seed every \
         instance anew",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A key can't be made.
    #[error("can't make a key and a certificate for the hub")]
    Generate(#[from] rcgen::Error),
}

impl Identity {
    /// Reads the identity that is kept in a folder, or makes one. Only the owner can read its file.
    ///
    /// # Errors
    /// When the file can't be read or written, or holds something else.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = generate()?.into_bytes();
                write(dir, &path, &text).map_err(|source| IdentityError::File { path: path.clone(), source })?;
                text
            }
            Err(source) => return Err(IdentityError::File { path, source }),
        };
        Self::parse(&text).map_err(|source| IdentityError::Content { path, source })
    }

    fn parse(text: &[u8]) -> Result<Self, pem::Error> {
        let key = PrivateKeyDer::from_pem_slice(text)?;
        Ok(Self { key, certificate: CertificateDer::from_pem_slice(text)? })
    }

    /// What a seed carries: SHA-256 over the certificate's DER.
    #[must_use]
    pub fn pin(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// How to speak TLS as this identity.
    pub(crate) fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("pin", &self.pin()).finish_non_exhaustive()
    }
}

fn generate() -> Result<String, rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new([SUBJECT.to_owned()])?.self_signed(&key)?;
    Ok(key.serialize_pem() + &certificate.pem())
}

/// Writes the file whole or not at all: a crash leaves no half key behind.
fn write(dir: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_identity_stays_the_same_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let made = Identity::load_or_create(dir.path()).unwrap();
        let read = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(made.pin(), read.pin());
        assert_eq!(made.pin().as_str().len(), 64);
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(read.server_config().is_ok());
    }

    #[test]
    fn a_file_with_something_else_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "nothing of the kind").unwrap();
        let error = Identity::load_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Content { .. }), "{error}");
        assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), b"nothing of the kind");
    }

    #[test]
    fn the_key_is_not_printed() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("{:?}", Identity::load_or_create(dir.path()).unwrap());
        assert!(!text.contains("key"), "{text}");
    }
}
