//! What an attempt uses, as `/proc` tells; nothing where there is no `/proc`.
//!
//! Processor time is that of all processes of the attempt: of those that live when its first process ends, of that
//! one, and of all that any of these have waited for. What a process took that nobody of the attempt waited for
//! counts if it was seen while it lived. Memory is looked at now and then, at first often and then once a second:
//! what is held for less than that may be missed, and pages that several processes share count for each.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use vm_agent_schemas::task::Usage;
use vm_agent_schemas::units::ByteSize;

use crate::process::{Entry, Sample, Tree, entries};

/// The pause before the first look; later ones double.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How old a table may be that is looked at: attempts that run side by side share it.
const FRESH: Duration = Duration::from_millis(100);

/// The table of processes, as it was a moment ago.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<Option<(Instant, Arc<[Entry]>)>>);

impl Table {
    fn recent(&self) -> Arc<[Entry]> {
        // A table is replaced as a whole.
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*table {
            Some((read, entries)) if read.elapsed() < FRESH => Arc::clone(entries),
            _ => Arc::clone(&table.insert((Instant::now(), entries().into())).1),
        }
    }
}

/// Measures one attempt.
#[derive(Debug)]
pub(super) struct Meter {
    began: Instant,
    table: Arc<Table>,
    most: Option<Sample>,
}

impl Meter {
    /// Begins to measure.
    pub(super) fn new(table: Arc<Table>) -> Self {
        Self { began: Instant::now(), table, most: None }
    }

    /// Looks at the tree again and again.
    pub(super) async fn watch(&mut self, tree: &mut Tree) -> Infallible {
        let mut pause = FIRST_PAUSE;
        loop {
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
            let sample = tree.sample(&self.table.recent());
            self.note(sample);
        }
    }

    /// Looks at the tree for the last time, now that its first process has ended and nobody has waited for it.
    pub(super) fn last_look(&mut self, tree: &mut Tree) {
        let sample = tree.sample(&entries());
        self.note(sample);
    }

    fn note(&mut self, sample: Option<Sample>) {
        if let Some(sample) = sample {
            let most = self.most.get_or_insert(sample);
            most.cpu = most.cpu.max(sample.cpu);
            most.memory = most.memory.max(sample.memory);
        }
    }

    /// What was used until now.
    pub(super) fn usage(&self) -> Option<Usage> {
        let Sample { cpu, memory } = self.most?;
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let memory_max = ByteSize::from_bytes(memory);
        Some(Usage { wall_ms: millis(self.began.elapsed()), cpu_ms: millis(cpu), memory_max })
    }
}
