//! What was measured: a table for people, or JSON.

use std::fmt::Write as _;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::Serialize;

/// How the figures are printed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    Table,
    /// JSON for programs
    Json,
}

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) measure: String,
    pub(crate) figure: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

/// Everything that was measured, and on what.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) sessions: usize,
    pub(crate) processors: usize,
    /// Whether generator and server were built without optimisation: then the figures say little.
    pub(crate) unoptimised: bool,
    pub(crate) figures: Vec<Figure>,
}

impl Report {
    pub(crate) fn new(sessions: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { sessions, processors, unoptimised: cfg!(debug_assertions), figures: Vec::new() }
    }

    pub(crate) fn add(&mut self, measure: &str, figure: &str, value: f64, unit: &'static str) {
        self.figures.push(Figure { measure: measure.to_owned(), figure: figure.to_owned(), value, unit });
    }

    /// The middle and the slow end of times in microseconds.
    #[expect(clippy::cast_precision_loss, reason = "times are far below 2^52 µs")]
    pub(crate) fn add_times(&mut self, measure: &str, times: &Histogram<u64>) {
        for (figure, quantile) in [("p50", 0.5), ("p99", 0.99), ("longest", 1.0)] {
            self.add(measure, figure, times.value_at_quantile(quantile) as f64 / 1000.0, "ms");
        }
    }

    pub(crate) fn print(&self, format: Format) -> String {
        match format {
            Format::Json => serde_json::to_string_pretty(self).expect("figures are JSON"),
            Format::Table => self.table(),
        }
    }

    fn table(&self) -> String {
        let build = if self.unoptimised { ", built without optimisation" } else { "" };
        let mut text = format!("{} sessions, {} processors{build}\n", self.sessions, self.processors);
        let width = |of: fn(&Figure) -> &str| self.figures.iter().map(|it| of(it).len()).max().unwrap_or(0);
        let (measures, figures) = (width(|it| &it.measure), width(|it| &it.figure));
        let mut last = "";
        for Figure { measure, figure, value, unit } in &self.figures {
            let shown = if measure == last { "" } else { measure };
            last = measure;
            // Three digits are as many as a repetition would bear out.
            let digits = if value.abs() < 10.0 { 2 } else { usize::from(value.abs() < 100.0) };
            let _ = writeln!(text, "{shown:measures$}  {figure:figures$}  {value:>10.digits$} {unit}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_names_each_measure_once() {
        let mut report = Report { sessions: 3, processors: 2, unoptimised: false, figures: Vec::new() };
        report.add("idle", "memory for each session", 12.34, "KiB");
        report.add("idle", "CPU", 0.5, "%");
        report.add("accept 16", "tasks", 1234.5, "/s");
        assert_eq!(
            report.print(Format::Table),
            "3 sessions, 2 processors\n\
             idle       memory for each session        12.3 KiB\n\
             \x20          CPU                            0.50 %\n\
             accept 16  tasks                          1234 /s\n"
        );
    }
}
