//! What a runtime tells of itself is kept and shown to people, and comes from inside the instance: it is
//! bounded, and plain text.

use vm_agent_schemas::wire::{Configured, HealthReport, UpgradeFailed};

use super::handshake::{Refusal, VERSION_MAX, is_sha256};

/// Most problems in one `configured`.
pub(super) const PROBLEMS_MAX: usize = 16;

/// Most characters of a problem: a sentence with a path in it.
pub(super) const PROBLEM_MAX: usize = 300;

/// Most services in one health report. How many the runtime was told of can't be the measure: what was
/// under way when it was told otherwise still comes.
pub(super) const SERVICES_MAX: usize = 256;

/// Most terminals in one health report: as many as a runtime may keep.
pub(super) const TERMINALS_MAX: usize = 16;

/// Whether this can be told of a configuration.
pub(super) fn check_configured(configured: &Configured) -> Result<(), Refusal> {
    if !configured.digest.as_ref().is_none_or(is_sha256) {
        return Err(Refusal::protocol("`digest` is not a SHA-256 digest in hexadecimal"));
    }
    if configured.problems.len() > PROBLEMS_MAX {
        return Err(Refusal::protocol(format!("`problems` has more than {PROBLEMS_MAX} entries")));
    }
    configured.problems.iter().try_for_each(|problem| check_sentence("an entry of `problems`", problem))
}

/// Whether this can be told of a machine's health.
pub(super) fn check_health(report: &HealthReport) -> Result<(), Refusal> {
    if report.services.len() > SERVICES_MAX {
        return Err(Refusal::protocol(format!("`services` has more than {SERVICES_MAX} entries")));
    }
    if report.terminals.len() > TERMINALS_MAX {
        return Err(Refusal::protocol(format!("`terminals` has more than {TERMINALS_MAX} entries")));
    }
    for service in report.services.values() {
        if !service.cpu_percent.is_finite() || service.cpu_percent < 0.0 {
            return Err(Refusal::protocol("`cpuPercent` is no share of a processor"));
        }
        service.problem.iter().try_for_each(|problem| check_sentence("`problem` of a service", problem))?;
    }
    Ok(())
}

/// Whether this can be told of an upgrade.
pub(super) fn check_upgrade_failed(failed: &UpgradeFailed) -> Result<(), Refusal> {
    if !is_sha256(&failed.sha256) {
        return Err(Refusal::protocol("`sha256` is not a SHA-256 digest in hexadecimal"));
    }
    if failed.version.len() > VERSION_MAX || failed.version.chars().any(char::is_control) {
        return Err(Refusal::protocol(format!("`version` is longer than {VERSION_MAX} bytes, or no plain text")));
    }
    check_sentence("`reason`", &failed.reason)
}

/// Whether services are in other states than before, or others.
pub(super) fn services_differ(before: Option<&HealthReport>, now: &HealthReport) -> bool {
    let states = |report: &HealthReport| report.services.iter().map(|(name, it)| (name.clone(), it.state)).collect();
    let before: Vec<_> = before.map(states).unwrap_or_default();
    before != states(now)
}

fn check_sentence(what: &str, text: &str) -> Result<(), Refusal> {
    if text.chars().count() > PROBLEM_MAX {
        return Err(Refusal::protocol(format!("{what} is longer than {PROBLEM_MAX} characters")));
    }
    if text.chars().any(char::is_control) {
        return Err(Refusal::protocol(format!("{what} is no line of plain text: it has control characters")));
    }
    Ok(())
}
