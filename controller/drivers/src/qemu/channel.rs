//! The host's side of the channel to the guest program. The guest's side and the words are those of
//! [`guest`](vm_agent_schemas::guest).

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;
use vm_agent_schemas::guest::{FromGuest, Lines, ToGuest, line};
use vm_agent_schemas::ids::RequestId;

use crate::socket;

/// When a request is said again that was not answered: a guest program that was restarted has lost it.
const AGAIN: Duration = Duration::from_secs(20);

/// When to say a request first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// Now: the guest program is up, or ought to be.
    Now,
    /// When the guest program says that it is ready: the machine is booting.
    WhenReady,
}

/// A conversation. QEMU serves one at a time.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    lines: Lines<FromGuest>,
    /// Whether the guest was heard at all.
    heard: bool,
}

impl Channel {
    /// Begins a conversation over this socket of a folder.
    pub(super) async fn connect(folder: &Path, name: &str) -> io::Result<Self> {
        Ok(Self { stream: socket::connect(folder, name).await?, lines: Lines::default(), heard: false })
    }

    /// Whether the guest program was heard.
    pub(super) const fn heard(&self) -> bool {
        self.heard
    }

    /// Says a request until it is answered. It is made anew each time it is said, always with the same id:
    /// the time in it would be old. Waits for ever; the caller holds the deadline.
    pub(super) async fn ask(&mut self, first: First, request: impl Fn(RequestId) -> ToGuest) -> io::Result<FromGuest> {
        let id = RequestId::generate();
        let mut next = Instant::now() + if first == First::Now { Duration::ZERO } else { AGAIN };
        let mut waiting: Vec<u8> = Vec::new();
        let mut bytes = [0; 4096];
        let (mut reader, mut writer) = self.stream.split();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next), if waiting.is_empty() => {
                    // A line break first: what a former host began to say must not spoil this.
                    waiting = [b"\n".as_slice(), &line(&request(id))].concat();
                    next = Instant::now() + AGAIN;
                }
                // A guest that is not up takes nothing, and what it is to hear waits in the socket.
                written = writer.write(&waiting), if !waiting.is_empty() => {
                    waiting.drain(..written?);
                }
                read = reader.read(&mut bytes) => {
                    let count = read?;
                    if count == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    for said in self.lines.push(&bytes[..count]) {
                        match said {
                            Ok(said) if said.answers() == Some(id) => {
                                self.heard = true;
                                return Ok(said);
                            }
                            Ok(FromGuest::Ready(ready)) => {
                                self.heard = true;
                                tracing::debug!(?ready, "a guest program is ready");
                                next = Instant::now();
                            }
                            Ok(_) => self.heard = true,
                            Err(error) => tracing::debug!(%error, "the channel of a machine"),
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;
    use vm_agent_schemas::guest::Ready;
    use vm_agent_schemas::ids::BootId;

    /// A guest's end of a channel, and the host's.
    async fn both() -> (tempfile::TempDir, BufReader<UnixStream>, Channel) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("c.sock")).unwrap();
        let (host, guest) = tokio::join!(Channel::connect(folder.path(), "c.sock"), listener.accept());
        (folder, BufReader::new(guest.unwrap().0), host.unwrap())
    }

    async fn next_request(guest: &mut BufReader<UnixStream>) -> ToGuest {
        loop {
            let mut text = String::new();
            assert!(guest.read_line(&mut text).await.unwrap() > 0, "the host says something");
            if let Ok(request) = serde_json::from_str(&text) {
                return request;
            }
        }
    }

    fn ready() -> Vec<u8> {
        line(&FromGuest::Ready(Ready { version: "1".into(), boot_id: BootId::generate(), nonce: None }))
    }

    #[tokio::test]
    async fn a_booting_guest_is_asked_once_it_is_ready_and_strange_words_are_passed_over() {
        let (_folder, mut guest, mut host) = both().await;
        let answered = async {
            // The end of a line for a former reader, and an answer to it.
            guest.write_all(b"rest\":1}\n").await.unwrap();
            guest.write_all(&line(&FromGuest::Done { id: RequestId::generate() })).await.unwrap();
            guest.write_all(&ready()).await.unwrap();
            let ToGuest::Status { id } = next_request(&mut guest).await else { panic!("it is what was asked") };
            guest.write_all(&line(&FromGuest::Done { id })).await.unwrap();
            id
        };
        let begun = Instant::now();
        let (answer, id) = tokio::join!(host.ask(First::WhenReady, |id| ToGuest::Status { id }), answered);
        assert_eq!(answer.unwrap().answers(), Some(id));
        assert!(begun.elapsed() < AGAIN);
        assert!(host.heard());
    }

    #[tokio::test]
    async fn a_guest_program_that_comes_back_is_told_again_with_the_same_id() {
        let (_folder, mut guest, mut host) = both().await;
        let answered = async {
            let ToGuest::Prove { id: first } = next_request(&mut guest).await else { panic!("it is what was asked") };
            guest.write_all(&ready()).await.unwrap();
            let ToGuest::Prove { id } = next_request(&mut guest).await else { panic!("it is what was asked") };
            assert_eq!(id, first);
            guest.write_all(&line(&FromGuest::Failed { id, reason: "no".into() })).await.unwrap();
        };
        let (answer, ()) = tokio::join!(host.ask(First::Now, |id| ToGuest::Prove { id }), answered);
        assert!(matches!(answer.unwrap(), FromGuest::Failed { .. }));
    }

    #[tokio::test]
    async fn a_machine_that_goes_away_ends_the_conversation() {
        let (_folder, guest, mut host) = both().await;
        drop(guest);
        assert!(host.ask(First::Now, |id| ToGuest::Prove { id }).await.is_err());
    }
}
