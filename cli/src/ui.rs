//! What people see: data on stdout, everything else on stderr, colour where it is understood.

use std::fmt;
use std::io::{self, BufRead as _, IsTerminal as _, Write};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::exit::{CommandError, Exit};
use crate::table::tame;

/// Something good.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Something that changes or waits.
pub(crate) const BUSY: Style = AnsiColor::Yellow.on_default();
/// Something bad.
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
/// Something that matters less.
pub(crate) const FAINT: Style = Style::new().dimmed();
/// Something that stands out.
pub(crate) const STRONG: Style = Style::new().bold();
/// Nothing particular.
pub(crate) const PLAIN: Style = Style::new();

/// When to use colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR says otherwise.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How to print a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// The same with more columns.
    Wide,
    /// The document as JSON.
    Json,
    /// The document as YAML.
    Yaml,
    /// Names, one a line.
    Name,
}

/// The flag that chooses how to print.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputArgs {
    /// How to print.
    #[arg(short, long = "output", value_name = "FORMAT", default_value = "table", value_enum)]
    pub(crate) output: Format,
}

/// The two streams, and how to write on them.
pub(crate) struct Ui {
    stdout: AutoStream<io::Stdout>,
    stderr: AutoStream<io::Stderr>,
    quiet: bool,
    /// Lines of the live block that stand on the terminal now.
    live: usize,
}

impl Ui {
    pub(crate) fn new(color: Color, quiet: bool) -> Self {
        let choice = match color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::AlwaysAnsi,
            Color::Never => anstream::ColorChoice::Never,
        };
        Self {
            stdout: AutoStream::new(io::stdout(), choice),
            stderr: AutoStream::new(io::stderr(), choice),
            quiet,
            live: 0,
        }
    }

    /// Prints data.
    pub(crate) fn print(&mut self, text: impl fmt::Display) -> Result<(), CommandError> {
        self.clear_live()?;
        let text = text.to_string();
        // Programs get what there is, byte by byte.
        let text = if io::stdout().is_terminal() { tame(&text) } else { text };
        self.stdout.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            self.stdout.write_all(b"\n")?;
        }
        self.stdout.flush()?;
        Ok(())
    }

    /// Prints a document: as it is for programs, or as `table` puts it for people.
    pub(crate) fn document(
        &mut self,
        format: Format,
        document: &Value,
        table: impl FnOnce() -> String,
    ) -> Result<(), CommandError> {
        match format {
            Format::Json => self.print(json(document)),
            Format::Yaml => self.print(to_yaml(document)),
            Format::Name => self.print(names(document)),
            Format::Table | Format::Wide => self.print(table()),
        }
    }

    /// Tells how things go.
    pub(crate) fn status(&mut self, text: impl fmt::Display) -> Result<(), CommandError> {
        if !self.quiet {
            self.clear_live()?;
            writeln!(self.stderr, "{}", tame(text.to_string().trim_end()))?;
        }
        Ok(())
    }

    /// Tells of something that should not be, though the command goes on.
    pub(crate) fn warn(&mut self, text: impl fmt::Display) -> Result<(), CommandError> {
        self.clear_live()?;
        writeln!(self.stderr, "{BUSY}warning:{BUSY:#} {}", tame(&text.to_string()))?;
        Ok(())
    }

    /// Tells what to do next.
    pub(crate) fn hint(&mut self, text: impl fmt::Display) -> Result<(), CommandError> {
        if !self.quiet {
            self.clear_live()?;
            writeln!(self.stderr, "{STRONG}hint:{STRONG:#} {}", tame(&text.to_string()))?;
        }
        Ok(())
    }

    /// Tells why the command failed. There is nobody to tell when this fails too.
    pub(crate) fn error(&mut self, error: &CommandError, format: Format) {
        if error.is_silent() {
            return;
        }
        let _ = self.clear_live();
        if format == Format::Json {
            let _ = serde_json::to_writer(&mut self.stderr, &error.to_problem());
            let _ = writeln!(self.stderr);
            return;
        }
        let _ = writeln!(self.stderr, "{BAD}error:{BAD:#} {}", tame(&error.to_string()));
        for diagnostic in error.diagnostics() {
            let _ = writeln!(self.stderr, "{}", tame(&crate::render::diagnostic(diagnostic)));
        }
        for hint in error.hints() {
            let _ = writeln!(self.stderr, "{STRONG}hint:{STRONG:#} {}", tame(hint));
        }
    }

    /// Whether a person watches stderr, so that lines may be drawn over.
    pub(crate) fn is_live(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// Draws a block of lines over the one before it.
    pub(crate) fn draw(&mut self, lines: &[String]) -> Result<(), CommandError> {
        self.clear_live()?;
        let (width, rows) = terminal_size();
        // A line that wraps or scrolls away could not be drawn over again.
        let shown = lines.len().min(rows.saturating_sub(2).max(1));
        for line in &lines[..shown] {
            writeln!(self.stderr, "{}", crate::table::truncate(&tame(line), width.saturating_sub(1)))?;
        }
        if shown < lines.len() {
            writeln!(self.stderr, "… and {} more", lines.len() - shown)?;
        }
        self.live = shown + usize::from(shown < lines.len());
        self.stderr.flush()?;
        Ok(())
    }

    fn clear_live(&mut self) -> Result<(), CommandError> {
        if self.live > 0 {
            // Past the colour filter: these sequences move the cursor, and only a terminal gets them.
            write!(self.stderr.as_inner().lock(), "\x1b[{}A\x1b[0J", self.live)?;
            self.live = 0;
        }
        Ok(())
    }

    /// Asks a person to type `answer`. With nobody there to ask, the command fails and names the
    /// flag that says yes beforehand.
    pub(crate) fn confirm(&mut self, question: &str, answer: &str) -> Result<(), CommandError> {
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Err(CommandError::new(Exit::USAGE, format!("{question}; nobody is here to confirm it"))
                .hint("`--yes` confirms it beforehand"));
        }
        self.clear_live()?;
        write!(self.stderr, "{question}. Type `{answer}` to go on: ")?;
        self.stderr.flush()?;
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        if line.trim() == answer {
            return Ok(());
        }
        Err(CommandError::new(Exit::FAILURE, "not confirmed; nothing was changed"))
    }

    /// Whether a person is here to be asked.
    pub(crate) fn can_ask(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }
}

/// Columns and rows of the terminal behind stderr; the usual ones where it does not know.
fn terminal_size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(io::stderr()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or((80, 24), |size| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// A document as JSON. Of the controls that JSON itself leaves as they are, some terminals obey a few.
fn json(document: &Value) -> String {
    let text = format!("{document:#}");
    if !text.contains(is_late_control) {
        return text;
    }
    let written = |c: char| if is_late_control(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    text.chars().map(written).collect()
}

fn is_late_control(character: char) -> bool {
    matches!(character, '\u{7f}'..='\u{9f}')
}

fn to_yaml(document: &Value) -> String {
    serde_yaml::to_string(document).expect("what was JSON can be written as YAML")
}

/// What the things of a document are called: each item's name, or id, or the agent it is about.
fn names(document: &Value) -> String {
    let one = std::slice::from_ref(document);
    let items = document.get("items").and_then(Value::as_array).map_or(one, Vec::as_slice);
    let name = |item: &Value| {
        let keys = ["name", "id", "agent", "seq", "fleet", "revision"];
        let found = keys.iter().find_map(|key| item.get(key).filter(|value| !value.is_null()));
        found.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    items.iter().filter_map(name).map(|name| name + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_that_a_terminal_shows_says_the_same() {
        let document = json!({"subject": "\u{9b}2J é\u{1b}\u{7f}"});
        let text = super::json(&document);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
    }

    #[test]
    fn a_document_is_named_by_its_items_or_by_itself() {
        assert_eq!(names(&json!({"items": [{"name": "db"}, {"id": 7}, {}]})), "db\n7\n");
        assert_eq!(names(&json!({"kind": "Agent", "name": "web"})), "web\n");
        assert_eq!(names(&json!({"items": []})), "");
    }
}
