//! The socket at which programs of the machine reach the runtime. Only the runtime's own user can.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::codec::{Framed, LinesCodec};
use tokio_util::task::AbortOnDropHandle;

use super::talk::{Answer, LINE_MAX, Request};

/// Most programs that are served at once.
const PROGRAMS_MAX: usize = 64;
/// Longest path that the address of a socket can hold everywhere, in bytes.
const PATH_MAX: usize = 100;

/// What a program wants, or that it is gone.
#[derive(Debug)]
pub(crate) struct Call {
    /// Which program: a number for each connection.
    pub(super) program: u64,
    /// What it wants.
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// It is there, and hears answers.
    Come(mpsc::UnboundedSender<Answer>),
    /// It asks for something.
    Asked(Request),
    /// It is gone.
    Gone,
}

/// The open socket. Dropping it closes it and takes it out of the folder.
#[derive(Debug)]
pub(super) struct Listening {
    path: PathBuf,
    _accepting: AbortOnDropHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        // The next start removes what is left.
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens at a path. What programs want goes into `calls`.
pub(super) fn listen(path: &Path, calls: mpsc::Sender<Call>) -> io::Result<Listening> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (address, _way) = address(path)?;
    let listener = UnixListener::bind(address)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, calls)));
    Ok(Listening { path: path.to_owned(), _accepting: accepting })
}

/// A path by which a socket can be named however long its own path is: the kernel takes short ones only.
/// What comes along has to be kept as long as the path is used.
pub(super) fn address(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    match (path.as_os_str().len() > PATH_MAX, path.parent(), path.file_name()) {
        (true, Some(folder), Some(name)) => {
            let folder = File::open(folder)?;
            Ok((PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name), Some(folder)))
        }
        _ => Ok((path.to_owned(), None)),
    }
}

async fn accept(listener: UnixListener, calls: mpsc::Sender<Call>) {
    let places = Arc::new(Semaphore::new(PROGRAMS_MAX));
    for program in 0.. {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("a program can't be served: {error}");
                continue;
            }
        };
        let calls = calls.clone();
        tokio::spawn(async move {
            // Without the runtime's loop there is nothing to be done.
            let _ = serve(stream, program, &calls).await;
            let _ = calls.send(Call { program, what: What::Gone }).await;
            drop(place);
        });
    }
}

/// The runtime's loop is gone.
struct Over;

async fn serve(stream: UnixStream, program: u64, calls: &mpsc::Sender<Call>) -> Result<(), Over> {
    let call = async |what| calls.send(Call { program, what }).await.map_err(|_| Over);
    let (say, mut answers) = mpsc::unbounded_channel();
    call(What::Come(say)).await?;
    let mut lines = Framed::new(stream, LinesCodec::new_with_max_length(LINE_MAX));
    loop {
        let answer = tokio::select! {
            line = lines.next() => match line {
                Some(Ok(line)) => match serde_json::from_str(&line) {
                    Ok(request) => {
                        call(What::Asked(request)).await?;
                        continue;
                    }
                    Err(error) => Answer::Error { reason: format!("that is no request: {error}") },
                },
                Some(Err(error)) => Answer::Error { reason: format!("that is no request: {error}") },
                None => return Ok(()),
            },
            answer = answers.recv() => answer.ok_or(Over)?,
        };
        let last = matches!(answer, Answer::Error { .. });
        let text = serde_json::to_string(&answer).expect("messages are plain data with texts as keys");
        // A program that is gone needs no answer.
        if lines.send(text).await.is_err() || last {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_can_be_reached_however_long_its_path_is() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("long".repeat(40));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("socket");
        let (calls, mut called) = mpsc::channel(1);
        let _listening = listen(&path, calls).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (address, _way) = address(&path).unwrap();
        let _program = UnixStream::connect(address).await.unwrap();
        assert!(matches!(called.recv().await.unwrap().what, What::Come(_)));
    }
}
