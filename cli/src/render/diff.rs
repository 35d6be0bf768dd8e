//! What applying a file would change.

use std::fmt::Write as _;

use serde_json::Value;
use vm_agent_schemas::fleet::DriftPolicy;

use super::value;
use crate::diff::{AgentDiff, Diff, FieldDiff, Kind};
use crate::ui::{BAD, FAINT, GOOD, STRONG};

/// Most characters of a value that are shown: a file's content may be long.
const VALUE_MAX: usize = 60;

/// A diff as text, one line for each difference.
pub(crate) fn diff(diff: &Diff) -> String {
    let mut text = String::new();
    for field in &diff.fleet {
        let _ = writeln!(text, "{}", field_line("", field));
    }
    for AgentDiff { agent, change, cost, fields } in &diff.items {
        let cost = cost.map_or_else(String::new, |cost| format!("  {FAINT}({cost}){FAINT:#}"));
        let _ = match change {
            Kind::New => writeln!(text, "{GOOD}+{GOOD:#} {STRONG}{agent}{STRONG:#}{cost}"),
            Kind::Gone => writeln!(text, "{BAD}-{BAD:#} {STRONG}{agent}{STRONG:#}{cost}"),
            Kind::Changed => Ok(()),
        };
        for field in fields {
            let _ = writeln!(text, "{}", field_line(&format!("{STRONG}{agent}{STRONG:#}."), field));
        }
    }
    text
}

fn field_line(before: &str, field: &FieldDiff) -> String {
    let FieldDiff { path, observed, wanted, cost, origin, policy } = field;
    let origin = origin.as_ref().map_or_else(String::new, |origin| format!("; {origin}"));
    let left = if *policy == DriftPolicy::Warn { "; left: `drift` says warn" } else { "" };
    let (observed, wanted) = (short(path, observed), short(path, wanted));
    format!("{before}{path}: {observed} -> {wanted} {FAINT}({cost}{origin}{left}){FAINT:#}")
}

/// A value on a line of its own, and no longer than a person reads.
fn short(path: &str, it: &Value) -> String {
    let last = path.rsplit('.').next().unwrap_or(path);
    let text = value(last, it).replace('\n', "\\n");
    if text.chars().count() <= VALUE_MAX {
        return text;
    }
    text.chars().take(VALUE_MAX - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use vm_agent_schemas::fleet::parse;

    #[test]
    fn each_difference_is_a_line_with_its_cost_and_where_the_value_comes_from() {
        let parse = |text: &str| parse("fleet.yaml", text).unwrap();
        let before = parse("agents: {db: {driver: local, memory: 8G, files: {a: x}}}");
        let after = parse(
            "prune: auto\nlimits: {memory: 8G}\nprofiles: {calm: {restart: never}}\n\
             agents: {db: {driver: local, memory: 8G, profile: calm, files: {a: 'many words, and more words than fit on a line of a terminal'}}}",
        );
        let overrides = samples::overridden("db").overrides;
        let found = crate::diff::diff(&samples::plan(), Some(&before), &after, &overrides, samples::now());
        insta::assert_snapshot!(anstream::adapter::strip_str(&diff(&found)).to_string());
    }
}
