//! The fleet files that were accepted.

use jiff::Timestamp;
use vm_agent_schemas::api::RevisionView;

use super::ago;
use crate::table::{Cell, Table};
use crate::ui::{GOOD, PLAIN};

/// Accepted files, newest first, with a mark at the one in force.
pub(crate) fn history(revisions: &[RevisionView], now: Timestamp) -> String {
    let mut sorted: Vec<&RevisionView> = revisions.iter().collect();
    sorted.sort_by_key(|it| std::cmp::Reverse(it.revision));
    let mut table = Table::new(&["REV", "AGE", "AUTHOR", "SUMMARY"]);
    for it in sorted {
        let (mark, style) = if it.current { ("*", GOOD) } else { ("", PLAIN) };
        table.row(vec![
            Cell::new(&format!("{}{mark}", it.revision), style),
            ago(now, it.at).into(),
            (&it.author).into(),
            (&it.summary).into(),
        ]);
    }
    table.render()
}

/// What a file said. Of several each is preceded by its name, as a comment.
pub(crate) fn revision(it: &RevisionView) -> String {
    let files = it.source.as_ref().map_or(&[][..], |source| &source.files);
    match files {
        [one] => one.text.clone(),
        files => {
            let texts: Vec<String> =
                files.iter().map(|file| format!("# {}\n{}\n", file.name, file.text.trim_end())).collect();
            texts.join("---\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use vm_agent_schemas::api::FleetSource;
    use vm_agent_schemas::fleet::SourceFile;

    #[test]
    fn the_newest_comes_first_and_the_one_in_force_is_marked() {
        let revisions = [samples::revision(1, false), samples::revision(2, true), samples::revision(3, false)];
        insta::assert_snapshot!(anstream::adapter::strip_str(&history(&revisions, samples::now())).to_string());
    }

    #[test]
    fn one_text_is_printed_as_it_is_and_several_with_their_names() {
        let file = |name: &str, text: &str| SourceFile { name: name.into(), path: None, text: text.into() };
        let of = |files| RevisionView {
            source: Some(FleetSource { roots: Vec::new(), files }),
            ..samples::revision(1, true)
        };
        assert_eq!(revision(&of(vec![file("a", "agents: {}")])), "agents: {}");
        let both = of(vec![file("a.yaml", "agents: {}\n"), file("b.yaml", "prune: auto\n\n")]);
        assert_eq!(revision(&both), "# a.yaml\nagents: {}\n---\n# b.yaml\nprune: auto\n");
    }
}
