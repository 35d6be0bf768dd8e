//! Who may speak to the daemon at a time. It carries out what changes an instance one after the other; a second such
//! call would only stand in its way, and wait where nobody can tell why.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{MutexGuard, Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// For how long machines come up one at a time after the daemon has failed. Many at once have brought it down before.
const CAREFUL: Duration = Duration::from_secs(10 * 60);

/// The most machines that come up at a time, however large the host. Ten at once have crashed a daemon
/// ([3336](https://github.com/canonical/multipass/issues/3336)).
const WIDEST: u32 = 4;

/// The lanes of one daemon.
#[derive(Debug)]
pub struct Lanes {
    change: tokio::sync::Mutex<()>,
    /// What is being changed, for people who wait.
    busy: Mutex<Option<String>>,
    starts: Semaphore,
    width: u32,
    stumbled: Mutex<Option<Instant>>,
}

/// The right to change something.
pub(super) struct Change<'a> {
    lanes: &'a Lanes,
    _held: MutexGuard<'a, ()>,
}

impl Lanes {
    /// The lanes of a daemon on a host with so many processors.
    #[must_use]
    pub fn new(cpus: usize) -> Arc<Self> {
        let width = width(cpus);
        Arc::new(Self {
            change: tokio::sync::Mutex::default(),
            busy: Mutex::default(),
            starts: Semaphore::new(width as usize),
            width,
            stumbled: Mutex::default(),
        })
    }

    /// How many machines may come up at a time.
    #[must_use]
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// How many steps may be under way: so many that come up, and as many that are up and still get what they are to
    /// have, so that the former need not wait for the latter.
    #[must_use]
    pub const fn steps(&self) -> u32 {
        2 * self.width
    }

    /// Waits until nothing else is changed.
    pub(super) async fn change(&self, what: String) -> Change<'_> {
        let held = self.change.lock().await;
        *lock(&self.busy) = Some(what);
        Change { lanes: self, _held: held }
    }

    /// What is being changed.
    pub(super) fn busy(&self) -> Option<String> {
        lock(&self.busy).clone()
    }

    /// Has a machine come up by a call, once one more may.
    pub async fn coming_up<T>(&self, call: impl Future<Output = T>) -> T {
        let _turn = self.start().await;
        call.await
    }

    /// Waits until one more machine may come up.
    async fn start(&self) -> SemaphorePermit<'_> {
        let careful = lock(&self.stumbled).is_some_and(|at| at.elapsed() < CAREFUL);
        let permits = self.starts.acquire_many(if careful { self.width } else { 1 }).await;
        permits.expect("the semaphore is never closed")
    }

    /// Notes that the daemon has failed.
    pub(super) fn stumble(&self) {
        *lock(&self.stumbled) = Some(Instant::now());
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        *lock(&self.lanes.busy) = None;
    }
}

/// A machine that boots keeps one processor busy. On a host with two, launches of 55 s each took 58 s two at a time and
/// 141 s four at a time: measured with Multipass 1.16.3 and emulated machines of one CPU.
fn width(cpus: usize) -> u32 {
    u32::try_from(cpus).unwrap_or(WIDEST).clamp(1, WIDEST)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, timeout};

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn machines_come_up_a_few_at_a_time() {
        assert_eq!([0, 1, 2, 3, 4, 64].map(width), [1, 1, 2, 3, 4, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_thing_is_changed_at_a_time_and_can_be_named() {
        let lanes = Lanes::new(8);
        let first = lanes.change("stop web".to_owned()).await;
        assert_eq!(lanes.busy().as_deref(), Some("stop web"));
        assert!(timeout(MOMENT, lanes.change("stop db".to_owned())).await.is_err());
        drop(first);
        assert_eq!(lanes.busy(), None);
        assert!(timeout(MOMENT, lanes.change("stop db".to_owned())).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_of_the_daemon_machines_come_up_alone_for_a_while() {
        let lanes = Lanes::new(8);
        let both = (lanes.start().await, lanes.start().await);
        drop(both);
        lanes.stumble();
        let alone = lanes.start().await;
        assert!(timeout(MOMENT, lanes.start()).await.is_err());
        drop(alone);
        advance(CAREFUL).await;
        let _both = (lanes.start().await, timeout(MOMENT, lanes.start()).await.unwrap());
    }
}
