//! One seed, or many.

use std::fmt;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::invariants::Broken;
use crate::world::World;

/// How many of the last lines are shown of a seed that failed.
const LAST_LINES: usize = 60;

/// A seed that broke a promise.
#[derive(Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What it broke.
    pub broken: Broken,
    /// What happened, line by line.
    pub lines: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped = self.lines.len().saturating_sub(LAST_LINES);
        for line in &self.lines[skipped..] {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {} broke {}", self.seed, self.broken)?;
        write!(f, "see it whole: cargo xtask simulate --seed {} --trace", self.seed)
    }
}

/// What many seeds came to.
#[derive(Debug, Default)]
pub struct Tally {
    /// Seeds that were run.
    pub seeds: u64,
    /// Events in all of them.
    pub events: u64,
    /// How long that took.
    pub took: Duration,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, events, took } = self;
        write!(f, "{seeds} seeds, {events} events, {:.1} s", took.as_secs_f64())
    }
}

/// Runs a seed. Gives how many events it had.
///
/// # Errors
/// With the promise that it broke.
pub fn one(seed: u64) -> Result<u64, Box<Failure>> {
    let mut world = World::new(seed, false);
    world.run().map(|()| world.events).map_err(|broken| {
        let (_, lines) = traced(seed);
        Box::new(Failure { seed, broken, lines })
    })
}

/// Runs a seed and keeps what happens.
pub fn traced(seed: u64) -> (Result<(), Broken>, Vec<String>) {
    let mut world = World::new(seed, true);
    let result = world.run();
    (result, world.lines().to_vec())
}

/// Runs seed after seed, on all processors, for as long as it may take.
///
/// # Errors
/// With the first that broke a promise.
pub fn many(from: u64, seeds: u64, limit: Option<Duration>) -> Result<Tally, Box<Failure>> {
    let begun = Instant::now();
    let (next, end) = (AtomicU64::new(from), from.saturating_add(seeds));
    let failed = Mutex::new(None::<Box<Failure>>);
    let work = || {
        let mut tally = Tally::default();
        while limit.is_none_or(|limit| begun.elapsed() <= limit) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                break;
            }
            match one(seed) {
                Ok(events) => (tally.events, tally.seeds) = (tally.events + events, tally.seeds + 1),
                Err(failure) => {
                    next.store(end, Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if failed.as_ref().is_none_or(|other| other.seed > seed) {
                        *failed = Some(failure);
                    }
                }
            }
        }
        tally
    };
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let done = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (tally.events, tally.seeds) = (tally.events + done.events, tally.seeds + done.seeds);
        }
    });
    tally.took = begun.elapsed();
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(tally), Err)
}
