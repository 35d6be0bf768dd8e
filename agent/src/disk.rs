//! What waits for the disk is done beside the event loop, so that a slow disk holds up nothing else.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// Deeds that are done one after the other, in the order in which they were given. There is a thread for them only
/// while there are some. Clones share the line.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<Line>>);

#[derive(Default)]
struct Line {
    deeds: VecDeque<Box<dyn FnOnce() + Send>>,
    /// Whether there is a thread that looks for more.
    worked: bool,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("waiting", &self.line().deeds.len()).finish_non_exhaustive()
    }
}

impl Disk {
    /// Has something done behind all that was given before, and does not wait for it.
    pub(crate) fn give(&self, deed: impl FnOnce() + Send + 'static) {
        let mut line = self.line();
        line.deeds.push_back(Box::new(deed));
        if std::mem::replace(&mut line.worked, true) {
            return;
        }
        drop(line);
        let disk = self.clone();
        if let Err(error) = std::thread::Builder::new().name("disk".to_owned()).spawn(move || disk.work()) {
            // To be held up is better than to lose it.
            tracing::warn!("there is no thread for the disk ({error}), so everything waits for it");
            self.work();
        }
    }

    /// Returns when all that was given is done.
    pub(crate) async fn done(&self) {
        let (tell, told) = oneshot::channel::<()>();
        self.give(move || drop(tell));
        let _ = told.await;
    }

    fn work(&self) {
        while let Some(deed) = self.next() {
            // One that breaks off says so on stderr, and the others are done all the same.
            let _ = catch_unwind(AssertUnwindSafe(deed));
        }
    }

    fn next(&self) -> Option<Box<dyn FnOnce() + Send>> {
        let mut line = self.line();
        let next = line.deeds.pop_front();
        line.worked = next.is_some();
        next
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing is done while it is held that could break off.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does something that waits for the disk on a thread beside the event loop, and waits for it.
pub(crate) async fn beside<T: Send + 'static>(deed: impl FnOnce() -> T + Send + 'static) -> T {
    let deed = Arc::new(Mutex::new(Some(deed)));
    let take = |deed: &Mutex<Option<_>>| deed.lock().unwrap_or_else(PoisonError::into_inner).take();
    let on_thread = Arc::clone(&deed);
    // It panics when a machine that is full of processes has no thread left. To be held up is better then.
    let begun = catch_unwind(AssertUnwindSafe(|| spawn_blocking(move || take(&on_thread).map(|deed| deed()))));
    let done = match begun {
        Ok(thread) => thread.await,
        Err(_) => Ok(take(&deed).map(|deed| deed())),
    };
    match done {
        Ok(Some(done)) => done,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        // The event loop ends, and so does whoever waits.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn deeds_are_done_in_order_beside_the_loop_and_one_that_breaks_off_stops_no_other() {
        let disk = Disk::default();
        let (open, gate) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        for number in 0..3 {
            let tell = tell.clone();
            disk.give(move || tell.send(number).unwrap());
        }
        disk.give(move || gate.recv().unwrap());
        disk.give(|| panic!("a deed breaks off, as it should here"));
        disk.give(move || tell.send(3).unwrap());
        assert_eq!([(); 3].map(|()| told.recv().unwrap()), [0, 1, 2]);
        // This loop goes on although the disk hangs.
        tokio::task::yield_now().await;
        assert!(told.try_recv().is_err());
        open.send(()).unwrap();
        disk.done().await;
        assert_eq!(told.try_recv(), Ok(3));
    }

    #[tokio::test]
    async fn what_is_done_beside_the_loop_is_waited_for() {
        assert_eq!(beside(|| 7).await, 7);
    }
}
