//! Server-sent events, as a browser reads them.

use std::collections::VecDeque;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::exit::{CommandError, Exit};

/// One event of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SseEvent {
    /// Its type; `message` when it has none of its own.
    pub(crate) kind: String,
    /// Its data.
    pub(crate) data: String,
}

/// A stream of events.
pub(crate) struct SseStream {
    body: Incoming,
    parser: Parser,
    ready: VecDeque<SseEvent>,
}

impl SseStream {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, parser: Parser::default(), ready: VecDeque::new() }
    }

    /// The next event; nothing when the stream has ended. A dropped call loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<SseEvent>, CommandError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| {
                CommandError::new(Exit::UNREACHABLE, format!("the controller's stream broke off: {error}"))
            })?;
            if let Ok(data) = frame.into_data() {
                self.parser.push(&data, &mut self.ready);
            }
        }
    }

    /// Takes what has come already and was not read yet.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = SseEvent> {
        self.ready.drain(..)
    }
}

/// The state between two pieces of a stream.
#[derive(Debug, Default)]
struct Parser {
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// Whether the last byte was a CR: an LF after it belongs to the same line end.
    after_cr: bool,
    kind: String,
    data: Option<String>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8], ready: &mut VecDeque<SseEvent>) {
        for &byte in bytes {
            let second_half = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            match byte {
                b'\n' if second_half => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    ready.extend(self.end_line(&String::from_utf8_lossy(&line)));
                }
                _ => self.line.push(byte),
            }
        }
    }

    /// Takes in a whole line; an empty one ends an event.
    fn end_line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let kind = std::mem::take(&mut self.kind);
            let data = self.data.take()?;
            return Some(SseEvent { kind: if kind.is_empty() { "message".to_owned() } else { kind }, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.kind),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            // Comments keep the connection alive; ids and retries are for browsers.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        let mut ready = VecDeque::new();
        for piece in pieces {
            parser.push(piece, &mut ready);
        }
        ready.into_iter().map(|event| (event.kind, event.data)).collect()
    }

    fn event(kind: &str, data: &str) -> (String, String) {
        (kind.to_owned(), data.to_owned())
    }

    #[test]
    fn events_are_read_with_their_types_and_lines() {
        let text = b": keep-alive\n\nevent: added\ndata: one\ndata: two\n\ndata:three\n\nid: 4\n\n";
        assert_eq!(parse(&[text]), [event("added", "one\ntwo"), event("message", "three")]);
    }

    #[test]
    fn the_stream_may_be_cut_anywhere() {
        let text = "event: a\r\ndata: ä\r\n\r\ndata: b\n\n".as_bytes();
        let whole = parse(&[text]);
        assert_eq!(whole, [event("a", "ä"), event("message", "b")]);
        for cut in 0..text.len() {
            assert_eq!(parse(&[&text[..cut], &text[cut..]]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn an_event_that_has_not_ended_is_not_told() {
        assert_eq!(parse(&[b"data: half\n"]), []);
    }

    #[test]
    fn empty_data_is_an_event_too() {
        assert_eq!(parse(&[b"data:\n\n"]), [event("message", "")]);
    }
}
