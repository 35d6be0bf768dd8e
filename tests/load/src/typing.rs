//! What a person at a terminal feels.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use hdrhistogram::Histogram;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::fleet::micros;
use crate::report::Report;
use crate::wire::{Frame, STDIN, STDOUT};
use crate::{Failure, Ground};

/// Between two keys: a person's fastest.
const PAUSE: Duration = Duration::from_millis(5);

/// Types into a stream that says back what it hears, one key after the other.
pub(crate) async fn measure(ground: &Ground, keys: u64, report: &mut Report) -> Result<(), Failure> {
    let agent = ground.fleet.agents().next().ok_or("there is no agent")?;
    let mut socket = ground.server.api.exec(agent).await?;
    let open = json!({"type": "open", "stdin": true, "target": {"kind": "run", "run": {"argv": ["cat"]}}});
    socket.send(Message::text(open.to_string())).await?;
    let mut times = Histogram::new(3)?;
    for offset in 0..keys {
        let begun = Instant::now();
        let key = Frame { stream: 0, channel: STDIN, offset, end: false, data: Bytes::from_static(b"k") };
        socket.send(Message::Binary(key.encode())).await?;
        loop {
            match socket.next().await.ok_or("the stream was closed")?? {
                Message::Binary(bytes) => {
                    let echo = Frame::decode(&bytes).ok_or("no frame")?;
                    if (echo.channel, echo.offset) == (STDOUT, offset) {
                        break;
                    }
                }
                Message::Text(text) if text.contains("\"failed\"") => return Err(text.as_str().into()),
                _ => {}
            }
        }
        times.record(micros(begun.elapsed()))?;
        tokio::time::sleep(PAUSE).await;
    }
    report.add_times("a key and its echo", &times);
    socket.close(None).await?;
    Ok(())
}
