//! What comes over the wire, before anybody acts on it.

use bytes::Bytes;
use vm_agent_schemas::wire::{DATA_MAX, Envelope, Frame, FromHub};

use crate::text::reads_back;

/// A binary frame is what it was read from, or it is none.
pub(crate) fn frames(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(frame) = Frame::decode(&bytes) {
        assert_eq!(frame.encode(), bytes);
        assert!(frame.data.len() <= DATA_MAX);
    }
}

/// What a runtime takes for a message of the hub is the same once written and read again.
pub(crate) fn from_hub(bytes: &[u8]) {
    reads_back::<Envelope<FromHub>>(bytes);
}
