//! The journal on disk: one file for each task, `tasks/<task id>.json`.

use std::fs;
use std::path::PathBuf;

use vm_agent_schemas::ids::TaskId;

use super::ledger::Record;
use crate::folder::{FolderError, failed, remove, write};

/// The folder of the journal.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// The journal in this folder, which exists.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// All records. A file that is none is left where it is, for a person to look at.
    pub(crate) fn load(&self) -> Result<Vec<Record>, FolderError> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed("list", &self.folder))? {
            let path = entry.map_err(failed("list", &self.folder))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read(&path).map_err(failed("read", &path))?;
            match serde_json::from_slice(&text) {
                Ok(record) => records.push(record),
                Err(_) => tracing::error!("{} is no record of a task; it is left alone", path.display()),
            }
        }
        Ok(records)
    }

    /// Replaces the record of a task; it is on the disk when this returns.
    pub(crate) fn write(&self, record: &Record) -> Result<(), FolderError> {
        let content = serde_json::to_vec(record).expect("a record is plain data with texts as keys");
        write(&self.path(record.task().task), &content)
    }

    /// Removes the record of a task. One that stays is forgotten at a later time.
    pub(crate) fn remove(&self, task: TaskId) {
        if let Err(error) = remove(&self.path(task)) {
            tracing::warn!("{}", crate::chain(&error));
        }
    }

    fn path(&self, task: TaskId) -> PathBuf {
        self.folder.join(format!("{task}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::task::{OUTPUT, Report};
    use vm_agent_schemas::wire::{TaskEnded, TaskOutcome, TaskRef};

    #[test]
    fn the_last_record_of_each_task_is_read_back() {
        let place = tempfile::tempdir().unwrap();
        let journal = Journal::new(place.path().to_owned());
        let task = TaskRef { task: TaskId::generate(), attempt: 1 };
        let end = TaskEnded { task, outcome: TaskOutcome::TimedOut, report: Report::default() };
        let settled = Record::Acknowledged { end };
        journal.write(&Record::Started { task, output: OUTPUT }).unwrap();
        journal.write(&settled).unwrap();
        fs::write(place.path().join("torn.json"), "{").unwrap();
        fs::write(place.path().join("torn.json.new"), "{").unwrap();
        assert_eq!(journal.load().unwrap(), [settled]);
        journal.remove(task.task);
        assert_eq!(journal.load().unwrap(), []);
    }
}
