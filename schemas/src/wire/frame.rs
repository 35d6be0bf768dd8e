//! Binary frames: a fixed header and the data of one channel of one stream.
//!
//! ```text
//! 0        4         5       6         14
//! | stream | channel | flags | offset  | data …
//! | u32    | u8      | u8    | u64     |
//! ```
//!
//! Numbers are big-endian. Flag bit 0 says that the channel ends after this data.

use bytes::{BufMut, Bytes, BytesMut};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bytes before the data.
pub const HEADER_LEN: usize = 14;
/// Most data in one frame, in bytes: small enough that a keystroke never waits long behind it.
pub const DATA_MAX: usize = 32 * 1024;

const END: u8 = 1;

/// One channel of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// To the process.
    Stdin,
    /// From the process.
    Stdout,
    /// From the process, beside stdout.
    Stderr,
}

/// A piece of one channel's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The stream's number.
    pub stream: u32,
    /// The channel.
    pub channel: Channel,
    /// Where in the channel the data begins, in bytes from its start.
    pub offset: u64,
    /// Whether the channel ends after the data.
    pub end: bool,
    /// The data.
    pub data: Bytes,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header.
    #[error("a binary frame of {0} bytes has no room for its header of {HEADER_LEN}")]
    Short(usize),
    /// More data than one frame may carry.
    #[error("a binary frame carries {0} bytes of data; at most {DATA_MAX} are allowed")]
    Long(usize),
    /// A channel that does not exist.
    #[error("there is no channel {0}")]
    Channel(u8),
    /// Flags that do not exist.
    #[error("unknown flags {0:#04x}")]
    Flags(u8),
}

impl Frame {
    /// The frame as it stands on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER_LEN + self.data.len());
        bytes.put_u32(self.stream);
        bytes.put_u8(match self.channel {
            Channel::Stdin => 0,
            Channel::Stdout => 1,
            Channel::Stderr => 2,
        });
        bytes.put_u8(if self.end { END } else { 0 });
        bytes.put_u64(self.offset);
        bytes.put_slice(&self.data);
        bytes.freeze()
    }

    /// Reads a frame; its data shares the memory of `bytes`.
    ///
    /// # Errors
    /// When the bytes are no frame of this protocol.
    pub fn decode(bytes: &Bytes) -> Result<Self, FrameError> {
        let Some((header, data)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(FrameError::Short(bytes.len()));
        };
        if data.len() > DATA_MAX {
            return Err(FrameError::Long(data.len()));
        }
        let [s0, s1, s2, s3, channel, flags, offset @ ..] = *header;
        let channel = match channel {
            0 => Channel::Stdin,
            1 => Channel::Stdout,
            2 => Channel::Stderr,
            other => return Err(FrameError::Channel(other)),
        };
        if flags & !END != 0 {
            return Err(FrameError::Flags(flags));
        }
        Ok(Self {
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            channel,
            offset: u64::from_be_bytes(offset),
            end: flags & END != 0,
            data: bytes.slice(HEADER_LEN..),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_frame_encoded_decodes_the_same(stream: u32, offset: u64, end: bool, data: Vec<u8>, stderr: bool) {
            let channel = if stderr { Channel::Stderr } else { Channel::Stdin };
            let frame = Frame { stream, channel, offset, end, data: data.into() };
            prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes: Vec<u8>) {
            let _ = Frame::decode(&bytes.into());
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_with_the_reason() {
        assert_eq!(Frame::decode(&Bytes::from_static(b"abc")), Err(FrameError::Short(3)));
        let mut bytes = [0u8; HEADER_LEN];
        bytes[4] = 9;
        assert_eq!(Frame::decode(&Bytes::copy_from_slice(&bytes)), Err(FrameError::Channel(9)));
        bytes[4] = 0;
        bytes[5] = 2;
        assert_eq!(Frame::decode(&Bytes::copy_from_slice(&bytes)), Err(FrameError::Flags(2)));
        let long = vec![0u8; HEADER_LEN + DATA_MAX + 1];
        assert_eq!(Frame::decode(&long.into()), Err(FrameError::Long(DATA_MAX + 1)));
    }
}
