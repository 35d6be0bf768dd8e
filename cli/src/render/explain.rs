//! The explanation of a key.

use std::fmt::Write as _;

use super::written;
use crate::explain::Explanation;
use crate::table::{Cell, Table, truncate};
use crate::ui::{FAINT, STRONG};

/// Widest type of a key among others, in columns: the key itself is explained in full.
const KIND_MAX: usize = 100;

/// An explanation as text.
pub(crate) fn explain(it: &Explanation) -> String {
    let mut text = String::new();
    let title = if it.path.is_empty() { "the fleet file" } else { &it.path };
    let _ = writeln!(text, "{STRONG}{title}{STRONG:#}  {FAINT}{}{FAINT:#}\n", it.kind);
    for line in it.meaning.lines() {
        let _ = writeln!(text, "  {line}");
    }
    text.push('\n');
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{STRONG}{name:<8}{STRONG:#}  {value}");
    };
    if it.required && !it.path.is_empty() {
        line("Default", "none: it has to be written".to_owned());
    } else if let Some(default) = &it.default {
        line("Default", written(default));
    }
    for example in &it.examples {
        line("Example", format!("{}: {}", last_key(&it.path), written(example)));
    }
    if let Some(cost) = &it.cost {
        line("Change", price(cost));
    }
    if !it.words.is_empty() {
        let mut table = Table::new(&["WORD", "MEANING"]);
        for it in &it.words {
            table.row(vec![Cell::new(&it.word, STRONG), it.meaning.as_str().into()]);
        }
        let _ = write!(text, "\n{}", table.render());
    }
    if !it.keys.is_empty() {
        let mut table = Table::new(&["KEY", "TYPE", "MEANING"]);
        for it in &it.keys {
            table.row(vec![
                Cell::new(&it.key, STRONG),
                truncate(&it.kind, KIND_MAX).into(),
                it.meaning.as_str().into(),
            ]);
        }
        let _ = write!(text, "\n{}", table.render());
    }
    text
}

fn last_key(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or_default()
}

/// What a change costs, in words.
fn price(cost: &str) -> String {
    match cost {
        "live" => "nothing stops".to_owned(),
        "stop" => "the machine stops and starts again".to_owned(),
        "birth" => {
            "only a new machine has it: the change is shown, and waits for your yes to replace the machine".to_owned()
        }
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Schema;

    fn shown(path: &str) -> String {
        let schema = Schema::new(vm_agent_schemas::fleet::json_schema().to_value());
        anstream::adapter::strip_str(&explain(&schema.explain(path).unwrap())).to_string()
    }

    #[test]
    fn a_key_is_explained_with_its_cost() {
        insta::assert_snapshot!(shown("agents.memory"));
    }

    #[test]
    fn words_are_explained_one_by_one() {
        insta::assert_snapshot!(shown("agents.dependsOn"));
    }

    #[test]
    fn keys_below_are_listed() {
        insta::assert_snapshot!(shown("limits"));
        insta::assert_snapshot!(shown("agents.tasks"));
    }
}
