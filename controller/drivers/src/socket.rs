//! Unix sockets in folders whose paths are longer than a socket's address may be.

use std::fs::File;
use std::io;
use std::path::Path;

use tokio::net::UnixStream;

/// Longest path of a unix socket that every system takes: macOS has 104 bytes, one of them for the end.
const PATH_MAX: usize = 103;

/// Connects to the socket of this name in a folder, however long the folder's path is.
pub(crate) async fn connect(folder: &Path, name: &str) -> io::Result<UnixStream> {
    let path = folder.join(name);
    if path.as_os_str().len() <= PATH_MAX {
        return UnixStream::connect(&path).await;
    }
    if !cfg!(target_os = "linux") {
        let message =
            format!("the path {} is too long for a unix socket; choose a shorter state folder", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    // The system's own short name for a folder that is open.
    let opened = File::open(folder)?;
    let short = format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&opened));
    UnixStream::connect(short).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_long_path_is_no_obstacle() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a-folder-with-a-long-name".repeat(5));
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(connect(&folder, "s.sock").await.unwrap_err().kind(), io::ErrorKind::NotFound);
        let opened = File::open(&folder).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&opened);
        let listener = UnixListener::bind(format!("/proc/self/fd/{fd}/s.sock")).unwrap();
        let (connected, accepted) = tokio::join!(connect(&folder, "s.sock"), listener.accept());
        connected.unwrap();
        accepted.unwrap();
    }
}
