//! Agents' logs: one file each in the state folder, bounded, and a channel for whoever follows. Each line
//! begins with the time at which it came.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::broadcast;
use vm_agent_schemas::names::AgentName;

/// A file that has grown to this becomes the old one, and the older one goes: an agent's log takes at
/// most twice as much.
const FILE_MAX: u64 = 1024 * 1024;

/// Lines a follower may lag behind before it misses some.
const LINES_IN_FLIGHT: usize = 1024;

/// All agents' logs.
#[derive(Debug, Clone)]
pub(crate) struct Logs {
    dir: Arc<PathBuf>,
    open: Arc<Mutex<BTreeMap<AgentName, Log>>>,
}

#[derive(Debug)]
struct Log {
    file: File,
    size: u64,
    followers: broadcast::Sender<String>,
}

impl Logs {
    /// Logs in this folder, which is made when the first line comes.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir: Arc::new(dir), open: Arc::default() }
    }

    /// Appends lines that came now to an agent's log.
    pub(crate) fn append(&self, agent: &AgentName, lines: &[String], now: Timestamp) -> io::Result<()> {
        let lines: Vec<String> = lines.iter().map(|line| format!("{now:.3} {line}")).collect();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let log = self.entry(&mut open, agent)?;
        for line in &lines {
            // Nobody following is no failure.
            let _ = log.followers.send(line.clone());
        }
        let mut text = lines.join("\n");
        text.push('\n');
        log.file.write_all(text.as_bytes())?;
        log.size += u64::try_from(text.len()).unwrap_or(u64::MAX);
        if log.size > FILE_MAX {
            fs::rename(self.path(agent), self.old_path(agent))?;
            log.file = self.create(agent)?;
            log.size = 0;
        }
        Ok(())
    }

    /// Lines of an agent's log from now on.
    pub(crate) fn follow(&self, agent: &AgentName) -> io::Result<broadcast::Receiver<String>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.entry(&mut open, agent)?.followers.subscribe())
    }

    /// The last lines of an agent's log, of those that came at a time or later, oldest first. Reads files: not
    /// for an async thread.
    pub(crate) fn tail(&self, agent: &AgentName, count: usize, since: Option<Timestamp>) -> io::Result<Vec<String>> {
        let mut last = VecDeque::new();
        for path in [self.old_path(agent), self.path(agent)] {
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for line in BufReader::new(file).split(b'\n') {
                let line = String::from_utf8_lossy(&line?).into_owned();
                if since.is_some_and(|since| came_at(&line).is_none_or(|at| at < since)) {
                    continue;
                }
                last.push_back(line);
                if last.len() > count {
                    last.pop_front();
                }
            }
        }
        Ok(last.into())
    }

    fn entry<'a>(&self, open: &'a mut BTreeMap<AgentName, Log>, agent: &AgentName) -> io::Result<&'a mut Log> {
        if !open.contains_key(agent) {
            let file = self.create(agent)?;
            let size = file.metadata()?.len();
            let (followers, _) = broadcast::channel(LINES_IN_FLIGHT);
            open.insert(agent.clone(), Log { file, size, followers });
        }
        open.get_mut(agent).ok_or_else(|| io::Error::other("the log was closed meanwhile"))
    }

    fn create(&self, agent: &AgentName) -> io::Result<File> {
        fs::create_dir_all(self.dir.as_ref())?;
        OpenOptions::new().create(true).append(true).mode(0o600).open(self.path(agent))
    }

    fn path(&self, agent: &AgentName) -> PathBuf {
        self.dir.join(format!("{agent}.log"))
    }

    fn old_path(&self, agent: &AgentName) -> PathBuf {
        self.dir.join(format!("{agent}.log.1"))
    }
}

/// When a line came; nothing for one from before lines had times.
fn came_at(line: &str) -> Option<Timestamp> {
    line.split_once(' ')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines without their times.
    fn texts(lines: &[String]) -> Vec<&str> {
        lines.iter().filter_map(|line| Some(line.split_once(' ')?.1)).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn logs() -> (tempfile::TempDir, Logs, AgentName) {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(dir.path().join("logs"));
        (dir, logs, "web".parse().unwrap())
    }

    #[test]
    fn the_tail_is_the_last_lines_in_order() {
        let (_dir, logs, web) = logs();
        logs.append(&web, &["one".into(), "two".into()], at(0)).unwrap();
        logs.append(&web, &["three".into()], at(1)).unwrap();
        assert_eq!(
            logs.tail(&web, 2, None).unwrap(),
            ["1970-01-01T00:00:00.000Z two", "1970-01-01T00:00:01.000Z three"]
        );
        assert_eq!(logs.tail(&"other".parse().unwrap(), 2, None).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn only_lines_since_a_time_are_given_and_none_whose_time_is_not_known() {
        let (_dir, logs, web) = logs();
        logs.append(&web, &["before".into()], at(5)).unwrap();
        fs::write(logs.path(&web), "of old\n").unwrap();
        for second in 6..9 {
            logs.append(&web, &[second.to_string()], at(second)).unwrap();
        }
        assert_eq!(texts(&logs.tail(&web, 9, Some(at(7))).unwrap()), ["7", "8"]);
        assert_eq!(logs.tail(&web, 9, None).unwrap().len(), 4);
    }

    #[test]
    fn a_log_is_bounded_and_its_tail_reaches_into_the_old_file() {
        let (dir, logs, web) = logs();
        let line = "x".repeat(1000);
        for number in 0..5000 {
            logs.append(&web, &[format!("{number} {line}")], at(number)).unwrap();
        }
        let total: u64 =
            fs::read_dir(dir.path().join("logs")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(total < 2 * FILE_MAX + 3000, "{total}");
        let tail = logs.tail(&web, 1200, None).unwrap();
        assert_eq!(tail.len(), 1200);
        let tail = texts(&tail);
        assert!(tail[0].starts_with("3800 ") && tail[1199].starts_with("4999 "));
    }

    #[test]
    fn followers_get_what_comes_after_them() {
        let (_dir, logs, web) = logs();
        logs.append(&web, &["before".into()], at(0)).unwrap();
        let mut follower = logs.follow(&web).unwrap();
        logs.append(&web, &["after".into()], at(1)).unwrap();
        assert_eq!(texts(&[follower.try_recv().unwrap()]), ["after"]);
    }
}
