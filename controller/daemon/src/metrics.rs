//! Counters for people (`/stats`) and for Prometheus (`/metrics`). `METRICS.md` lists them, and is made from
//! here.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use vm_agent_hub::{Closings, Notice, SessionInfo};
use vm_agent_schemas::message::{MessageState, RefusedCode};
use vm_agent_schemas::plan::Plan;
use vm_agent_schemas::wire::TaskOutcome;
use vm_agent_store::StoreStats;

/// Bounds of a pass's duration, in seconds: from an idle fleet's to a sick disk's.
const PASS_BUCKETS: [f64; 8] = [0.000_1, 0.000_5, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0];

/// What a metric is, for its line in `METRICS.md`.
#[derive(Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "the list is compared with the page in a test"))]
struct Listed {
    name: &'static str,
    kind: &'static str,
    label: Option<&'static str>,
    help: &'static str,
}

/// A registry that remembers what was registered: a metric with labels is not seen there before it has a value.
#[derive(Debug, Default)]
struct Register {
    registry: Registry,
    listed: Vec<Listed>,
}

type Made<T> = Result<T, prometheus::Error>;

impl Register {
    fn add<T: Collector + Clone + 'static>(&mut self, metric: T, listed: Listed) -> Made<T> {
        self.registry.register(Box::new(metric.clone()))?;
        self.listed.push(listed);
        Ok(metric)
    }

    fn counter(&mut self, name: &'static str, help: &'static str) -> Made<IntCounter> {
        self.add(IntCounter::new(name, help)?, Listed { name, kind: "counter", label: None, help })
    }

    fn counters(&mut self, name: &'static str, label: &'static str, help: &'static str) -> Made<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
        self.add(counters, Listed { name, kind: "counter", label: Some(label), help })
    }

    fn gauge(&mut self, name: &'static str, help: &'static str) -> Made<IntGauge> {
        self.add(IntGauge::new(name, help)?, Listed { name, kind: "gauge", label: None, help })
    }

    fn gauges(&mut self, name: &'static str, label: &'static str, help: &'static str) -> Made<IntGaugeVec> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
        self.add(gauges, Listed { name, kind: "gauge", label: Some(label), help })
    }

    fn histogram(&mut self, name: &'static str, help: &'static str, buckets: &[f64]) -> Made<Histogram> {
        let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
        self.add(histogram, Listed { name, kind: "histogram", label: None, help })
    }
}

/// Everything counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    register: Register,
    pass_seconds: Histogram,
    steps: IntCounter,
    failures: IntCounter,
    sync: IntGaugeVec,
    health: IntGaugeVec,
    overrides: IntGaugeVec,
    file_valid: IntGauge,
    file_changes: IntCounterVec,
    webhooks: IntCounterVec,
    turned_away: IntCounter,
    hub: HubMetrics,
    store_commits: IntCounter,
    store_writes: IntCounter,
}

/// What runtimes do.
#[derive(Debug)]
struct HubMetrics {
    sessions: IntGauge,
    streams: IntGauge,
    refusals: IntCounterVec,
    turned_away: IntCounterVec,
    tasks_accepted: IntCounter,
    tasks_started: IntCounter,
    tasks_retried: IntCounter,
    tasks_ended: IntCounterVec,
    tasks_dead: IntCounter,
    tasks_queued: IntGauge,
    tasks_running: IntGauge,
    output: IntCounter,
    messages: IntCounterVec,
    messages_refused: IntCounterVec,
    messages_waiting: IntGauge,
}

impl HubMetrics {
    fn new(to: &mut Register) -> Made<Self> {
        Ok(Self {
            sessions: to.gauge("vmagent_hub_sessions", "Runtimes that are connected.")?,
            streams: to.gauge("vmagent_hub_streams", "Streams of clients that are open: shells, commands, copies.")?,
            refusals: to.counters(
                "vmagent_hub_refusals_total",
                "code",
                "Connections that the hub refused or ended, in a session or before it, by what it told them.",
            )?,
            turned_away: to.counters(
                "vmagent_hub_turned_away_total",
                "reason",
                "Connections that ended before the hub could tell them anything, by why: slow, crowded, plain, tls, \
                 upgrade, lost, shutdown.",
            )?,
            tasks_accepted: to.counter("vmagent_tasks_accepted_total", "Tasks that were accepted.")?,
            tasks_started: to.counter("vmagent_tasks_started_total", "Attempts of tasks that began.")?,
            tasks_retried: to
                .counter("vmagent_tasks_retried_total", "Attempts of tasks that ended and are followed by another.")?,
            tasks_ended: to.counters("vmagent_tasks_ended_total", "outcome", "Tasks that ended, by how.")?,
            tasks_dead: to.counter("vmagent_tasks_dead_total", "Tasks that became dead letters.")?,
            tasks_queued: to.gauge(
                "vmagent_tasks_queued",
                "Tasks that wait for a connected runtime, or for any agent of a pool.",
            )?,
            tasks_running: to
                .gauge("vmagent_tasks_running", "Tasks that were sent to connected runtimes and are not over.")?,
            output: to.counter("vmagent_task_output_bytes_total", "Bytes of output that came from tasks.")?,
            messages: to.counters(
                "vmagent_messages_total",
                "state",
                "Messages that were accepted, were taken or are dead.",
            )?,
            messages_refused: to.counters(
                "vmagent_message_refusals_total",
                "code",
                "Messages of agents that go nowhere, by why.",
            )?,
            messages_waiting: to.gauge("vmagent_messages_waiting", "Messages that wait for connected runtimes.")?,
        })
    }

    fn told(&self, notice: &Notice) {
        match notice {
            Notice::TaskStarted(_) => self.tasks_started.inc(),
            Notice::TaskRetried(_) => self.tasks_retried.inc(),
            Notice::TaskEnded(task) => {
                if let Some(outcome) = task.outcome() {
                    self.tasks_ended.with_label_values(&[outcome_word(outcome)]).inc();
                }
                self.tasks_dead.inc_by(u64::from(task.dead.is_some()));
            }
            Notice::TaskOutput { data, .. } => self.output.inc_by(data.len() as u64),
            Notice::Message(message) => self.messages.with_label_values(&[state_word(&message.state)]).inc(),
            Notice::MessageRefused { refused, .. } => {
                self.messages_refused.with_label_values(&[refused_word(refused.code)]).inc();
            }
            _ => {}
        }
    }

    fn seen(&self, sessions: &[SessionInfo], pooled: usize, closings: &Closings) {
        let count = |counters: &IntCounterVec, word: &str, count: u64| {
            let counter = counters.with_label_values(&[word]);
            counter.inc_by(count.saturating_sub(counter.get()));
        };
        closings.refused.iter().for_each(|(code, it)| count(&self.refusals, code.as_str(), *it));
        closings.turned_away.iter().for_each(|(why, it)| count(&self.turned_away, why.as_str(), *it));
        let sum = |of: fn(&SessionInfo) -> u32| sessions.iter().map(|session| i64::from(of(session))).sum::<i64>();
        let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.sessions.set(whole(sessions.len()));
        self.streams.set(sum(|session| session.streams));
        self.tasks_queued.set(sum(|session| session.tasks.saturating_sub(session.running)) + whole(pooled));
        self.tasks_running.set(sum(|session| session.running));
        self.messages_waiting.set(sum(|session| session.messages));
    }
}

/// What is counted when somebody asks, instead of as it happens.
pub(crate) struct Now<'a> {
    pub(crate) plan: &'a Plan,
    /// The path of each override in force.
    pub(crate) overrides: &'a [&'static str],
    pub(crate) file_valid: bool,
    pub(crate) sessions: &'a [SessionInfo],
    /// Connections that the hub has closed.
    pub(crate) closings: Closings,
    /// Tasks that wait for any agent of a pool.
    pub(crate) pooled: usize,
    pub(crate) store: StoreStats,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let mut to = Register::default();
        Ok(Self {
            pass_seconds: to.histogram("vmagent_pass_seconds", "How long passes of the loop took.", &PASS_BUCKETS)?,
            steps: to.counter("vmagent_steps_total", "Steps on instances that were begun.")?,
            failures: to.counter("vmagent_step_failures_total", "Steps on instances that failed or took too long.")?,
            sync: to.gauges("vmagent_agents_by_sync", "sync", "Agents by whether they are as wanted.")?,
            health: to.gauges("vmagent_agents_by_health", "health", "Agents by whether they are well.")?,
            overrides: to.gauges("vmagent_overrides", "path", "Overrides in force, by path.")?,
            file_valid: to
                .gauge("vmagent_file_valid", "Whether the fleet file on the disk can be read and has no errors.")?,
            file_changes: to.counters(
                "vmagent_file_changes_total",
                "result",
                "Changes of the fleet file that were found, by what became of them.",
            )?,
            webhooks: to.counters(
                "vmagent_webhook_calls_total",
                "result",
                "Calls of webhooks, by what became of them.",
            )?,
            turned_away: to
                .counter("vmagent_api_unauthorized_total", "Requests over TCP without a token that works.")?,
            hub: HubMetrics::new(&mut to)?,
            store_commits: to.counter("vmagent_store_commits_total", "Transactions that the store committed.")?,
            store_writes: to.counter("vmagent_store_writes_total", "Writes that those transactions held.")?,
            register: to,
        })
    }

    pub(crate) fn pass(&self, took: Duration) {
        self.pass_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn step_began(&self) {
        self.steps.inc();
    }

    pub(crate) fn step_failed(&self) {
        self.failures.inc();
    }

    /// The hub told something.
    pub(crate) fn told(&self, notice: &Notice) {
        self.hub.told(notice);
    }

    pub(crate) fn tasks_accepted(&self, count: usize) {
        self.hub.tasks_accepted.inc_by(count as u64);
    }

    /// A request came without a token that works.
    pub(crate) fn turned_away(&self) {
        self.turned_away.inc();
    }

    pub(crate) fn file_changed(&self, result: &str) {
        self.file_changes.with_label_values(&[result]).inc();
    }

    /// A webhook was called: `taken`, `failed` or `given_up`.
    pub(crate) fn webhook(&self, result: &str) {
        self.webhooks.with_label_values(&[result]).inc();
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps.get()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.get()
    }

    /// The text format of Prometheus.
    pub(crate) fn text(&self, now: &Now<'_>) -> Result<String, prometheus::Error> {
        self.file_valid.set(i64::from(now.file_valid));
        for gauge in [&self.sync, &self.health, &self.overrides] {
            gauge.reset();
        }
        for agent in &now.plan.agents {
            self.sync.with_label_values(&[&agent.sync.to_string()]).inc();
            self.health.with_label_values(&[&agent.health.to_string()]).inc();
        }
        for path in now.overrides {
            self.overrides.with_label_values(&[path]).inc();
        }
        self.hub.seen(now.sessions, now.pooled, &now.closings);
        for (counter, count) in [(&self.store_commits, now.store.commits), (&self.store_writes, now.store.writes)] {
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.register.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// How a task ended, without what is particular to it: a label has few values.
const fn outcome_word(outcome: &TaskOutcome) -> &'static str {
    match outcome {
        TaskOutcome::Exited { code: 0 } => "succeeded",
        TaskOutcome::Exited { .. } => "exited",
        TaskOutcome::Signaled { .. } => "signaled",
        TaskOutcome::TimedOut => "timed-out",
        TaskOutcome::NotStarted { .. } => "not-started",
        TaskOutcome::Failed { .. } => "failed",
        TaskOutcome::Canceled => "canceled",
        TaskOutcome::Expired => "expired",
        TaskOutcome::Interrupted => "interrupted",
    }
}

const fn state_word(state: &MessageState) -> &'static str {
    match state {
        MessageState::Waiting => "accepted",
        MessageState::Taken { .. } => "taken",
        MessageState::Dead { .. } => "dead",
    }
}

const fn refused_word(code: RefusedCode) -> &'static str {
    match code {
        RefusedCode::Denied => "denied",
        RefusedCode::Unknown => "unknown",
        RefusedCode::Rate => "rate",
        RefusedCode::Full => "full",
        RefusedCode::Invalid => "invalid",
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;

    const INTRODUCTION: &str = "# Metrics

What a controller counts since it was started, at `GET /metrics` in the text format of Prometheus. A metric with a label
has a line there for each value that has come up so far.

| name | type | label | what |
|---|---|---|---|
";

    #[test]
    fn the_page_of_metrics_lists_what_is_counted() {
        let mut page = INTRODUCTION.to_owned();
        for Listed { name, kind, label, help } in &Metrics::new().unwrap().register.listed {
            let label = label.map_or_else(|| "–".to_owned(), |label| format!("`{label}`"));
            writeln!(page, "| `{name}` | {kind} | {label} | {help} |").unwrap();
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../METRICS.md");
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(checked_in == page, "METRICS.md is out of date: run this test with UPDATE_SCHEMAS=1");
    }
}
