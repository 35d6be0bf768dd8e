//! Tasks: how many are accepted, how soon they have ended, how much they write.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::api::Connection;
use crate::fleet::micros;
use crate::report::Report;
use crate::{Failure, Ground};

/// Requests under way at most when a rate is offered. More than a controller that keeps up ever has.
const OFFERERS: u32 = 128;

/// How long tasks may take to end once nobody asks for more. What has not ended by then is told of.
const PATIENCE: Duration = Duration::from_secs(60);

fn nothing() -> Value {
    json!({"job": {"work": {"type": "exec", "argv": ["true"]}}})
}

async fn submit(connection: &mut Connection, agent: &str, task: &Value) -> Result<Value, Failure> {
    connection.call("POST", &format!("/agents/{agent}/task"), Some(task)).await
}

/// Who waits for tasks to end: they are seen in the stream of events, which names the agent. Tasks of one
/// agent end in the order in which they were asked for.
#[derive(Default)]
struct Watch {
    open: HashMap<String, VecDeque<Instant>>,
    ended: u64,
    times: Option<Histogram<u64>>,
    since: Option<Instant>,
    last: Option<Instant>,
}

type Shared = Arc<Mutex<Watch>>;

fn with<T>(watch: &Shared, look: impl FnOnce(&mut Watch) -> T) -> T {
    look(&mut watch.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Watch {
    /// Watches from now on, until dropped with the set.
    async fn start(ground: &Ground, watchers: &mut JoinSet<Result<(), Failure>>) -> Result<Shared, Failure> {
        let watch = Shared::new(Mutex::new(Self { times: Some(Histogram::new(3)?), ..Self::default() }));
        let (mut events, shared) = (ground.server.api.events().await?, watch.clone());
        watchers.spawn(async move {
            loop {
                let event = events.next().await?;
                if event["kind"] == "TaskEnded" {
                    with(&shared, |watch| watch.saw(event["agent"].as_str().unwrap_or_default()));
                }
            }
        });
        Ok(watch)
    }

    fn saw(&mut self, agent: &str) {
        let now = Instant::now();
        if let (Some(since), Some(times)) =
            (self.open.get_mut(agent).and_then(VecDeque::pop_front), self.times.as_mut())
        {
            // It grows as it must: nothing is out of its range.
            let _ = times.record(micros(now.saturating_duration_since(since)));
        }
        self.ended += 1;
        self.since.get_or_insert(now);
        self.last = Some(now);
    }
}

/// Waits until that many have ended; answers with how many have.
async fn ended(watch: &Shared, wanted: u64) -> u64 {
    let begun = Instant::now();
    loop {
        let seen = with(watch, |watch| watch.ended);
        if seen >= wanted || begun.elapsed() > PATIENCE {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asks again and again, each requester for its own share of the agents.
#[expect(clippy::cast_precision_loss, reason = "figures are shown with three digits")]
pub(crate) async fn accept(
    ground: &Ground,
    in_flight: usize,
    lasting: Duration,
    report: &mut Report,
) -> Result<(), Failure> {
    let measure = format!("accept, {in_flight} in flight");
    let mut watchers = JoinSet::new();
    let watch = Watch::start(ground, &mut watchers).await?;
    let agents: Arc<[String]> = ground.fleet.agents().map(str::to_owned).collect();
    let (mut requesters, begun, before) = (JoinSet::new(), Instant::now(), ground.server.usage()?);
    for requester in 0..in_flight {
        let (mut connection, agents) = (ground.server.api.connect().await?, agents.clone());
        requesters.spawn(async move {
            let (task, mut times, mut next) = (nothing(), Histogram::<u64>::new(3)?, requester);
            while begun.elapsed() < lasting {
                let asked = Instant::now();
                submit(&mut connection, &agents[next % agents.len()], &task).await?;
                times.record(micros(asked.elapsed()))?;
                next += in_flight;
            }
            Ok::<_, Failure>(times)
        });
    }
    let mut times = Histogram::new(3)?;
    while let Some(answers) = requesters.join_next().await {
        times.add(answers??)?;
    }
    let (took, accepted) = (begun.elapsed().as_secs_f64(), times.len() as f64);
    let meanwhile = with(&watch, |watch| watch.ended) as f64;
    let all = ended(&watch, times.len()).await as f64;
    let (whole, after) = (begun.elapsed().as_secs_f64(), ground.server.usage()?);
    report.add(&measure, "one sync of this disk", ground.server.sync_time()?.as_secs_f64() * 1e3, "ms");
    report.add(&measure, "accepted", accepted / took, "/s");
    report.add_times(&measure, &times);
    report.add(&measure, "ended meanwhile", meanwhile / took, "/s");
    report.add(&measure, "all ended after", whole, "s");
    if all < accepted {
        report.add(&measure, "not seen to end", accepted - all, "");
    }
    report.add(&measure, "controller's CPU for each", (after.cpu - before.cpu).as_secs_f64() * 1e6 / accepted, "µs");
    report.add(
        &measure,
        "written to disk for each",
        (after.written - before.written) as f64 / 1024.0 / accepted,
        "KiB",
    );
    Ok(())
}

/// Offers tasks at a rate, whatever becomes of them. A task's time runs from when it was to be asked for, so
/// that a controller that keeps a requester waiting is not spared the wait.
#[expect(clippy::cast_precision_loss, reason = "figures are shown with three digits")]
pub(crate) async fn round_trip(
    ground: &Ground,
    rate: u32,
    lasting: Duration,
    report: &mut Report,
) -> Result<(), Failure> {
    let measure = format!("round trip, {rate}/s offered");
    let mut watchers = JoinSet::new();
    let watch = Watch::start(ground, &mut watchers).await?;
    let agents: Arc<[String]> = ground.fleet.agents().map(str::to_owned).collect();
    let count = u32::try_from(lasting.as_secs())? * rate;
    let (mut offerers, begun) = (JoinSet::new(), Instant::now());
    for offerer in 0..OFFERERS {
        let (mut connection, agents, watch) = (ground.server.api.connect().await?, agents.clone(), watch.clone());
        offerers.spawn(async move {
            let task = nothing();
            for index in (offerer..count).step_by(OFFERERS as usize) {
                let due = begun + Duration::from_secs(1) * index / rate;
                tokio::time::sleep_until(due.into()).await;
                let agent = &agents[index as usize % agents.len()];
                with(&watch, |watch| watch.open.entry(agent.clone()).or_default().push_back(due));
                submit(&mut connection, agent, &task).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(offered) = offerers.join_next().await {
        offered??;
    }
    let seen = ended(&watch, u64::from(count)).await;
    let (times, took) = with(&watch, |watch| (watch.times.take(), watch.last.map(|last| last - begun)));
    if let (Some(times), Some(took)) = (times, took) {
        report.add(&measure, "seen to end", seen as f64 / took.as_secs_f64(), "/s");
        report.add_times(&measure, &times);
    }
    if seen < u64::from(count) {
        report.add(&measure, "not seen to end", f64::from(count) - seen as f64, "");
    }
    Ok(())
}

/// Has tasks write much, all of it to be kept.
#[expect(clippy::cast_precision_loss, reason = "figures are shown with three digits")]
pub(crate) async fn output(ground: &Ground, tasks: usize, mebibytes: u64, report: &mut Report) -> Result<(), Failure> {
    let measure = format!("output, {tasks} tasks of {mebibytes} MiB");
    let bytes = mebibytes * 1024 * 1024;
    let task = json!({"job": {"work": {"type": "exec", "argv": ["write", bytes.to_string()]}, "output": bytes}});
    let mut watchers = JoinSet::new();
    let watch = Watch::start(ground, &mut watchers).await?;
    let mut connection = ground.server.api.connect().await?;
    let (begun, before) = (Instant::now(), ground.server.usage()?);
    for agent in ground.fleet.agents().take(tasks) {
        submit(&mut connection, agent, &task).await?;
    }
    let wanted = tasks.min(ground.fleet.len()) as u64;
    let seen = ended(&watch, wanted).await;
    let (took, after) = (begun.elapsed().as_secs_f64(), ground.server.usage()?);
    if seen < wanted {
        return Err(format!("{seen} of {wanted} tasks that write ended in {PATIENCE:?}").into());
    }
    let megabytes = (wanted * bytes) as f64 / 1e6;
    report.add(&measure, "stored", megabytes / took, "MB/s");
    report.add(
        &measure,
        "controller's CPU for each MB",
        (after.cpu - before.cpu).as_secs_f64() * 1e3 / megabytes,
        "ms",
    );
    Ok(())
}
