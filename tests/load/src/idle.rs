//! What sessions cost that do nothing, and how fast they come.

use std::time::{Duration, Instant};

use crate::report::Report;
use crate::{Failure, Ground};

/// Connects all, cuts them, connects them again, and leaves them connected.
#[expect(clippy::cast_precision_loss, reason = "figures are shown with three digits")]
pub(crate) async fn measure(
    ground: &mut Ground,
    tls: bool,
    lasting: Duration,
    report: &mut Report,
) -> Result<(), Failure> {
    let transport = if tls { "with TLS" } else { "plain" };
    let sessions = ground.fleet.len() as f64;
    let before = ground.server.heap().await? as f64;
    for which in ["join", "return"] {
        let measure = format!("{which}, {transport}");
        let begun = ground.server.usage()?;
        let storm = ground.fleet.storm(tls).await?;
        let used = ground.server.usage()?.cpu - begun.cpu;
        report.add(&measure, "all are welcome after", storm.took.as_secs_f64(), "s");
        report.add(&measure, "attempts for each", storm.attempts as f64 / sessions, "");
        report.add(&measure, "controller's CPU for each", used.as_secs_f64() * 1000.0 / sessions, "ms");
        report.add_times(&measure, &storm.welcome);
        let waited = Instant::now();
        ground.server.rest().await?;
        report.add(&measure, "at rest after", waited.elapsed().as_secs_f64(), "s");
        if which == "join" {
            let heap = ground.server.heap().await? as f64;
            let measure = format!("idle, {transport}");
            report.add(&measure, "memory for each session", (heap - before) / 1024.0 / sessions, "KiB");
            report.add(&measure, "controller's heap before", before / 1e6, "MB");
            report.add(&measure, "controller's heap after", heap / 1e6, "MB");
            report.add(&measure, "controller's RSS after", ground.server.usage()?.rss as f64 / 1e6, "MB");
            let (begun, since) = (ground.server.usage()?.cpu, Instant::now());
            tokio::time::sleep(lasting).await;
            let used = ground.server.usage()?.cpu - begun;
            let share = used.as_secs_f64() / since.elapsed().as_secs_f64();
            report.add(&measure, "CPU of one processor", share * 100.0, "%");
            ground.fleet.cut().await;
            ground.server.rest().await?;
        }
    }
    Ok(())
}
