//! What tasks wrote.

use std::collections::BTreeSet;

use vm_agent_hub::Record;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::{Channel, TaskOutcome, TaskRef};
use vm_agent_store::output::OutputRecord;

use crate::deed::Deed;
use crate::output::{CHANNELS, byte};

use super::{Invariant, ONCE, hold, invariant};

/// When the end of an attempt is stored, all of its output is that is to be kept, in order and once.
#[derive(Debug, Default)]
pub(super) struct OutputIsWhole {
    /// Attempts whose end was meant to be stored.
    over: BTreeSet<TaskRef>,
    /// Attempts that came to their end while the disk refused their output: that is lost.
    lost: BTreeSet<TaskRef>,
}

impl OutputIsWhole {
    fn note(&mut self, deed: &Deed) {
        match deed {
            Deed::Meant { records, .. } => {
                for record in records {
                    let Record::Task(task) = record else { continue };
                    let last = task.attempt - u32::from(task.outcome().is_none());
                    self.over.insert(TaskRef { task: task.id, attempt: last });
                }
            }
            Deed::NotStored(records) => {
                for record in records {
                    let Record::Output { task, .. } = record else { continue };
                    if self.over.contains(task) {
                        self.lost.insert(*task);
                    }
                }
            }
            // What was meant and not stored is forgotten with the life.
            Deed::Began { .. } => self.over.clear(),
            _ => {}
        }
    }
}

/// How much an attempt has written, if its runtime has told its end.
fn told(task: TaskRef, stored: &Task, written: Option<[u64; 2]>) -> Option<[u64; 2]> {
    if stored.outcome().is_some() && stored.attempt == task.attempt {
        return stored.report.as_ref().map(|report| [report.stdout, report.stderr]);
    }
    let former = stored.former.iter().find(|former| former.attempt == task.attempt)?;
    written.filter(|_| former.outcome != TaskOutcome::Interrupted)
}

fn judge(
    task: TaskRef,
    channel: Channel,
    pieces: &[OutputRecord],
    total: Option<u64>,
    bound: u64,
) -> Result<(), String> {
    let mut end = 0;
    let mut kept = BTreeSet::new();
    for piece in pieces.iter().filter(|piece| piece.channel == channel) {
        hold(piece.offset >= end, || format!("{channel:?} at {} is stored again, or out of order", piece.offset))?;
        end = piece.offset + piece.data.len() as u64;
        for (offset, data) in (piece.offset..).zip(&piece.data) {
            hold(*data == byte(task, channel, offset), || format!("{channel:?} at {offset} is not what was written"))?;
            kept.insert(offset);
        }
    }
    let Some(total) = total else { return Ok(()) };
    let (head, tail) = (bound / 2, bound - bound / 2);
    let missing = (0..total).find(|at| (*at < head || *at >= total.saturating_sub(tail)) && !kept.contains(at));
    hold(missing.is_none(), || format!("{channel:?} at {missing:?} of {total} is not stored (bound {bound})"))?;
    hold(kept.len() as u64 <= bound.max(total.min(bound)), || format!("more than {bound} is stored"))
}

impl Invariant for OutputIsWhole {
    invariant!(OutputIsWhole, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        self.note(deed);
        let Deed::AttemptOver { task, stored, written, output } = deed else { return Ok(()) };
        let totals = told(*task, stored, *written).filter(|_| !self.lost.contains(task));
        for (index, channel) in CHANNELS.into_iter().enumerate() {
            let total = totals.map(|totals| totals[index]);
            judge(*task, channel, output, total, stored.job.output.bytes())?;
        }
        Ok(())
    }
}
