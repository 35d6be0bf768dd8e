//! JSON as Qt prints it: keys sorted, four blanks of indent, and the brackets of empty containers on lines of
//! their own.

use serde_json::Value;

/// A document, with the newline at its end.
pub(crate) fn document(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text.push('\n');
    text
}

fn write(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Array(items) => {
            text.push_str("[\n");
            let last = items.len().saturating_sub(1);
            for (index, item) in items.iter().enumerate() {
                indent(depth + 1, text);
                write(item, depth + 1, text);
                text.push_str(if index == last { "\n" } else { ",\n" });
            }
            indent(depth, text);
            text.push(']');
        }
        Value::Object(entries) => {
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            text.push_str("{\n");
            let last = entries.len().saturating_sub(1);
            for (index, (key, value)) in entries.into_iter().enumerate() {
                indent(depth + 1, text);
                text.push_str(&format!("{}: ", Value::from(key.as_str())));
                write(value, depth + 1, text);
                text.push_str(if index == last { "\n" } else { ",\n" });
            }
            indent(depth, text);
            text.push('}');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

fn indent(depth: usize, text: &mut String) {
    text.push_str(&"    ".repeat(depth));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_sorted_and_empty_containers_take_two_lines() {
        let told = document(&json!({ "b": [], "a": { "x": "1\n", "B": 2.5 } }));
        assert_eq!(
            told,
            "{\n    \"a\": {\n        \"B\": 2.5,\n        \"x\": \"1\\n\"\n    },\n    \"b\": [\n    ]\n}\n"
        );
    }
}
