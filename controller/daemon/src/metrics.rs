//! Counters for people (`/stats`) and for Prometheus (`/metrics`). `docs` of each metric are its help
//! texts.

use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use vm_agent_schemas::plan::Plan;

/// Bounds of a pass's duration, in seconds: from an idle fleet's to a sick disk's.
const PASS_BUCKETS: [f64; 8] = [0.000_1, 0.000_5, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0];

/// Everything counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pass_seconds: Histogram,
    steps: IntCounter,
    failures: IntCounter,
    refusals: IntCounter,
    sync: IntGaugeVec,
    health: IntGaugeVec,
    overrides: IntGaugeVec,
    file_valid: IntGauge,
    file_changes: IntCounterVec,
    webhooks: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str, label: &str| -> Result<IntGaugeVec, prometheus::Error> {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let steps = counter("vmagent_steps_total", "Steps on instances that were begun.")?;
        let failures = counter("vmagent_step_failures_total", "Steps on instances that failed or took too long.")?;
        let refusals = counter("vmagent_hub_refusals_total", "Connections that the hub refused.")?;
        let sync = gauge("vmagent_agents_by_sync", "Agents by whether they are as wanted.", "sync")?;
        let health = gauge("vmagent_agents_by_health", "Agents by whether they are well.", "health")?;
        let overrides = gauge("vmagent_overrides", "Overrides in force, by path.", "path")?;
        let file_valid =
            IntGauge::new("vmagent_file_valid", "Whether the fleet file on the disk can be read and has no errors.")?;
        registry.register(Box::new(file_valid.clone()))?;
        let opts = Opts::new(
            "vmagent_file_changes_total",
            "Changes of the fleet file that were found, by what became of them.",
        );
        let file_changes = IntCounterVec::new(opts, &["result"])?;
        registry.register(Box::new(file_changes.clone()))?;
        let opts = Opts::new("vmagent_webhook_calls_total", "Calls of webhooks, by what became of them.");
        let webhooks = IntCounterVec::new(opts, &["result"])?;
        registry.register(Box::new(webhooks.clone()))?;
        let opts = HistogramOpts::new("vmagent_pass_seconds", "How long passes of the loop took.");
        let pass_seconds = Histogram::with_opts(opts.buckets(PASS_BUCKETS.to_vec()))?;
        registry.register(Box::new(pass_seconds.clone()))?;
        Ok(Self {
            registry,
            pass_seconds,
            steps,
            failures,
            refusals,
            sync,
            health,
            overrides,
            file_valid,
            file_changes,
            webhooks,
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

    pub(crate) fn refused(&self) {
        self.refusals.inc();
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

    pub(crate) fn refusals(&self) -> u64 {
        self.refusals.get()
    }

    /// The text format of Prometheus, with the agents counted as the plan sees them.
    pub(crate) fn text(
        &self,
        plan: &Plan,
        overrides: &[&'static str],
        file_valid: bool,
    ) -> Result<String, prometheus::Error> {
        self.file_valid.set(i64::from(file_valid));
        for gauge in [&self.sync, &self.health, &self.overrides] {
            gauge.reset();
        }
        for agent in &plan.agents {
            self.sync.with_label_values(&[&agent.sync.to_string()]).inc();
            self.health.with_label_values(&[&agent.health.to_string()]).inc();
        }
        for path in overrides {
            self.overrides.with_label_values(&[path]).inc();
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
