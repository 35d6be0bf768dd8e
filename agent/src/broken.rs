//! A defect of the runtime breaks off one thing and not all of them: whoever waits for that thing is told.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

/// What was done broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a defect of the runtime broke it off; it may have done its work or not, and what the runtime wrote to its stderr tells more"
)]
pub(crate) struct BrokenOff;

/// Does something that may panic. What the panic says went to stderr, and nowhere else: it may hold anything.
pub(crate) async fn unbroken<T>(deed: impl Future<Output = T>) -> Result<T, BrokenOff> {
    AssertUnwindSafe(deed).catch_unwind().await.map_err(|_| {
        tracing::error!("something broke off by a defect of the runtime");
        BrokenOff
    })
}
