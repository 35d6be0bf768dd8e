//! What a service writes, line by line into the log, without the secrets that it was given.

use tokio::io::AsyncRead;

use crate::log_forward::{LINE_MAX, LogSender};
use crate::process::Drain;
use crate::redact::Redactor;

/// How much is read at once, in bytes. A service that writes nothing holds a buffer of this size for each of
/// its channels.
const READ: usize = 4096;

/// Sends what comes out of a pipe to the log, each line after `mark`.
pub(super) async fn forward<R: AsyncRead + Unpin>(
    mark: String,
    mut pipe: Drain<R>,
    mut redactor: Redactor,
    log: LogSender,
) {
    let mut lines = Lines::default();
    let add = |line: &[u8]| log.add(|| format!("{mark}{}", String::from_utf8_lossy(line)));
    while let Some(data) = pipe.read(READ).await {
        lines.push(&redactor.push(data), add);
    }
    lines.push(&redactor.finish(), add);
    lines.finish(add);
}

/// Bytes on their way to become lines. Of a line that is too long the beginning is kept.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn push(&mut self, data: &[u8], mut add: impl FnMut(&[u8])) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            let room = LINE_MAX - self.partial.len();
            self.partial.extend_from_slice(&text[..text.len().min(room)]);
            if ends {
                add(self.partial.strip_suffix(b"\r").unwrap_or(&self.partial));
                self.partial.clear();
            }
        }
    }

    fn finish(&mut self, mut add: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            add(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        let mut add = |line: &[u8]| seen.push(String::from_utf8(line.to_owned()).unwrap());
        for piece in pieces {
            lines.push(piece, &mut add);
        }
        lines.finish(add);
        seen
    }

    #[test]
    fn lines_are_put_together_and_taken_apart() {
        assert_eq!(lines(&[b"on", b"e\ntwo\r\n\nth", b"", b"ree"]), ["one", "two", "", "three"]);
        assert_eq!(lines(&[b"done\n"]), ["done"]);
    }

    #[test]
    fn of_a_line_without_end_the_beginning_is_kept() {
        let long = vec![b'x'; 3 * LINE_MAX];
        assert_eq!(lines(&[&long, &long, b"\nnext\n"]), ["x".repeat(LINE_MAX), "next".to_owned()]);
    }
}
