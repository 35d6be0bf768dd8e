//! The controller under load: a process of its own, so that what it takes is told apart from what the
//! generator takes.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::Failure;
use crate::api::Api;
use crate::wire::Seed;

/// A running controller. It ends with this value, and so does its folder.
pub(crate) struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) api: Api,
    folder: TempDir,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Memory that it holds now, in bytes.
    pub(crate) rss: u64,
    /// Time on processors.
    pub(crate) cpu: Duration,
    /// Bytes that it had written to the disk.
    pub(crate) written: u64,
}

impl Server {
    pub(crate) async fn start(program: &Path) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("vm-agent-load-").tempdir()?;
        let mut child = Command::new(program)
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{} can't be started: {error}", program.display()))?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("it has no stdout")?).lines();
        let ready: Value = serde_json::from_str(&lines.next_line().await?.ok_or("the controller did not start")?)?;
        let socket = ready["addresses"]["socket"].as_str().ok_or("the controller has no socket")?;
        Ok(Self { api: Api::at(Path::new(socket)), child, lines, folder })
    }

    /// Declares a fleet of that many agents, and gives the seeds of their machines.
    pub(crate) async fn declare(&mut self, agents: usize) -> Result<Vec<Seed>, Failure> {
        let text = format!("defaults: {{driver: qemu}}\nagents:\n  load: {{replicas: {agents}}}\n");
        let request = json!({"source": {"roots": [], "files": [{"name": "fleet.yaml", "text": text}]}});
        self.api.connect().await?.call("POST", "/apply", Some(&request)).await?;
        let mut seeds = Vec::with_capacity(agents);
        while seeds.len() < agents {
            let line = self.lines.next_line().await?.ok_or("the controller ended")?;
            seeds.push(serde_json::from_str(&line)?);
        }
        Ok(seeds)
    }

    /// How many bytes the controller holds on its heap.
    pub(crate) async fn heap(&mut self) -> Result<u64, Failure> {
        self.child.stdin.as_mut().ok_or("the controller's stdin is closed")?.write_all(b"heap\n").await?;
        let answer: Value = serde_json::from_str(&self.lines.next_line().await?.ok_or("the controller ended")?)?;
        answer["heap"].as_u64().ok_or_else(|| format!("no size of a heap: {answer}").into())
    }

    /// Waits until the controller has had nothing to do for a while.
    pub(crate) async fn rest(&self) -> Result<(), Failure> {
        const LOOK: Duration = Duration::from_secs(1);
        loop {
            let before = self.usage()?.cpu;
            tokio::time::sleep(LOOK).await;
            if (self.usage()?.cpu - before) < LOOK / 10 {
                return Ok(());
            }
        }
    }

    pub(crate) fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(self.child.id().ok_or("the controller ended")?)
    }

    /// How long it takes to have 4 KiB on the disk where the controller keeps its state: the middle of many.
    pub(crate) fn sync_time(&self) -> Result<Duration, Failure> {
        const TIMES: usize = 101;
        let mut file = std::fs::File::create(self.folder.path().join("probe"))?;
        let mut times = Vec::with_capacity(TIMES);
        for _ in 0..TIMES {
            let begun = Instant::now();
            file.write_all(&[0; 4096])?;
            file.sync_data()?;
            times.push(begun.elapsed());
        }
        times.sort();
        Ok(times[TIMES / 2])
    }

    /// Ends the controller in order.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        drop(self.child.stdin.take());
        self.child.wait().await?;
        Ok(())
    }
}

impl Usage {
    fn of(pid: u32) -> Result<Self, Failure> {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        let line = |text: &str, key: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
        };
        let rss = line(&read("status")?, "VmRSS:").ok_or("no VmRSS in /proc")? * 1024;
        let written = line(&read("io")?, "write_bytes:").ok_or("no write_bytes in /proc")?;
        // The name, in parentheses, may hold anything. After it: user and system time are the 12th and 13th.
        let stat = read("stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system).ok_or("no times in /proc")?;
        let cpu = Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?;
        Ok(Self { rss, cpu, written })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_is_seen_to_use_something() {
        let before = Usage::of(std::process::id()).unwrap();
        assert!(before.rss > 100_000);
        while Usage::of(std::process::id()).unwrap().cpu == before.cpu {}
    }
}
