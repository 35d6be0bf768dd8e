//! One mutating call for each instance at a time, also when callers give up half-way.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep};
use vm_agent_schemas::names::InstanceName;

/// A lock for each instance: one for every name that was ever acted on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holds(Arc<Mutex<HashMap<InstanceName, Arc<tokio::sync::Mutex<()>>>>>);

impl Holds {
    /// Waits until no other call acts on the instance.
    pub(crate) async fn hold(&self, instance: &InstanceName) -> Hold {
        Hold(Arc::new(self.lock_of(instance).lock_owned().await))
    }

    /// Holds the instance if no other call acts on it.
    pub(crate) fn try_hold(&self, instance: &InstanceName) -> Option<Hold> {
        self.lock_of(instance).try_lock_owned().ok().map(|guard| Hold(Arc::new(guard)))
    }

    fn lock_of(&self, instance: &InstanceName) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(instance.clone()).or_default())
    }
}

/// The right to act on an instance. Work that goes on in a thread after its caller has given up
/// keeps it, so that the next call begins only when that work is over.
#[derive(Debug, Clone)]
pub(crate) struct Hold(#[expect(dead_code, reason = "held, not read")] Arc<OwnedMutexGuard<()>>);

impl Hold {
    /// Does blocking work in a thread that may wait.
    pub(crate) async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let hold = self.clone();
        // What comes of it may be a lock: where the caller has given up, that is dropped, and the hold after it.
        let (done, _hold) = blocking(move || (work(), hold)).await;
        done
    }

    /// Waits until the condition is true, at most as long as the limit, and says whether it is.
    ///
    /// This polls because a file's lock gives no event when it is taken or released. A look costs
    /// some system calls, and the pauses between them grow.
    pub(crate) async fn until(
        &self,
        limit: Duration,
        condition: impl Fn() -> io::Result<bool> + Clone + Send + 'static,
    ) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        let mut backoff = Backoff::new();
        loop {
            if self.blocking(condition.clone()).await? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            backoff.pause().await;
        }
    }

    /// A hold that keeps nobody else out.
    pub(crate) fn of_nothing() -> Self {
        let guard = Arc::new(tokio::sync::Mutex::new(())).try_lock_owned();
        Self(Arc::new(guard.expect("a new mutex is free")))
    }
}

/// Does blocking work in a thread that may wait. A panic goes on in the caller.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Only a runtime that shuts down cancels blocking work, and then nobody waits for this.
        Err(_) => std::future::pending().await,
    }
}

/// Growing pauses between looks.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    /// Not noticed by a person, and seldom enough to cost nothing.
    const LONGEST: Duration = Duration::from_millis(50);

    pub(crate) fn new() -> Self {
        Self(Duration::from_millis(2))
    }

    pub(crate) async fn pause(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Says, when it is dropped, whether the instance was held.
    struct Said(Holds, InstanceName, mpsc::Sender<bool>);

    impl Drop for Said {
        fn drop(&mut self) {
            self.2.send(self.0.try_hold(&self.1).is_none()).unwrap();
        }
    }

    #[tokio::test]
    async fn what_comes_of_work_that_was_given_up_is_dropped_before_the_hold() {
        let (holds, name): (_, InstanceName) = (Holds::default(), "web".parse().unwrap());
        let (begin, begun) = mpsc::channel::<()>();
        let (say, said) = mpsc::channel();
        let hold = holds.hold(&name).await;
        let result = Said(holds.clone(), name.clone(), say);
        let work = hold.blocking(move || {
            begun.recv().unwrap();
            result
        });
        tokio::select! {
            biased;
            _ = work => unreachable!("it waits"),
            () = std::future::ready(()) => {}
        }
        drop(hold);
        begin.send(()).unwrap();
        assert!(said.recv().unwrap(), "it was free before what came of the work was dropped");
        drop(holds.hold(&name).await);
    }
}
