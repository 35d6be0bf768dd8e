//! Sentences for people that leave the machine: bounded, and plain text.

/// Most characters of a sentence that the hub takes.
const SENTENCE_MAX: usize = 300;
/// Most bytes of the reason of an outcome: room for a path or two.
const REASON_MAX: usize = 9 * 1024;
/// Most problems of a configuration that the hub takes.
const PROBLEMS_MAX: usize = 16;

/// A text with nothing in it that could do more to a terminal than be read there. What names and outputs
/// contain is not ours to choose.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|it| if it.is_control() && it != '\t' { char::REPLACEMENT_CHARACTER } else { it }).collect()
}

/// A sentence as the hub takes it.
pub(crate) fn sentence(text: &str) -> String {
    let text = plain(text).replace('\t', " ");
    match text.char_indices().nth(SENTENCE_MAX) {
        None => text,
        Some(_) => text.chars().take(SENTENCE_MAX - 1).chain(['…']).collect(),
    }
}

/// A reason that has no bound of its own, so that it fits into a message whatever it quotes. What it quotes stands in
/// its middle mostly, so that is what is left out.
pub(crate) fn reason(text: &str) -> String {
    if text.len() <= REASON_MAX {
        return text.to_owned();
    }
    let (head, tail) = (REASON_MAX * 2 / 3, REASON_MAX / 3);
    format!("{} … {}", &text[..text.floor_char_boundary(head)], &text[text.ceil_char_boundary(text.len() - tail)..])
}

/// As many problems as the hub takes; the last one counts those that are left out.
pub(crate) fn problems(all: &[String]) -> Vec<String> {
    if all.len() <= PROBLEMS_MAX {
        return all.iter().map(|text| sentence(text)).collect();
    }
    let told = &all[..PROBLEMS_MAX - 1];
    let more = format!("there are {} more problems like these", all.len() - told.len());
    told.iter().map(|text| sentence(text)).chain([more]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_short_and_plain() {
        assert_eq!(sentence("as\tit is"), "as it is");
        assert_eq!(sentence("\u{1b}[2Jgone\n"), "\u{fffd}[2Jgone\u{fffd}");
        assert_eq!(sentence(&"é".repeat(300)), "é".repeat(300));
        assert_eq!(sentence(&"é".repeat(301)), "é".repeat(299) + "…");
    }

    #[test]
    fn a_long_reason_loses_its_middle() {
        let quoting = |len: usize| format!("`{}` can't be read", "é".repeat(len));
        assert_eq!(reason(&quoting(10)), quoting(10));
        let short = reason(&quoting(100_000));
        assert!(short.len() < REASON_MAX + 10, "{}", short.len());
        assert!(short.starts_with("`éé") && short.contains("é … é") && short.ends_with("é` can't be read"));
    }

    #[test]
    fn problems_that_are_too_many_are_counted() {
        let all = |count: usize| (0..count).map(|number| number.to_string()).collect::<Vec<_>>();
        assert_eq!(problems(&all(16)), all(16));
        let told = problems(&all(20));
        assert_eq!(
            (told.len(), told[14].as_str(), told[15].as_str()),
            (16, "14", "there are 5 more problems like these")
        );
    }
}
