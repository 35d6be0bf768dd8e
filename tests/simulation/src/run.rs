//! One seed, or many.

use std::fmt;
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

/// Runs seed after seed, for as long as it may take.
///
/// # Errors
/// With the first that broke a promise.
pub fn many(from: u64, seeds: u64, limit: Option<Duration>) -> Result<Tally, Box<Failure>> {
    let begun = Instant::now();
    let mut tally = Tally::default();
    for seed in from..from.saturating_add(seeds) {
        if limit.is_some_and(|limit| begun.elapsed() > limit) {
            break;
        }
        tally.events += one(seed)?;
        tally.seeds += 1;
    }
    tally.took = begun.elapsed();
    Ok(tally)
}
