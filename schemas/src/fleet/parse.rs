//! From texts to fleet, or to sentences that say where the texts are wrong and what was expected.
//!
//! Each file is read on its own, past its errors ([`read`](super::read)); the files are united, the
//! layers are laid over each other, and what was found on the way is told with its places
//! ([`outline`](super::outline)).

use std::collections::BTreeSet;
use std::path::Path;

use super::diagnostic::{Diagnostic, FINDINGS_MAX, Finding, Place, Spot};
use super::file::FleetFile;
use super::outline::Outline;
use super::read::{self, Report};
use super::resolve::{Fleet, resolve};
use super::source::{SourceFile, lines, sound};
use super::unite::{Repeat, unite};
use super::{host, layer};
use crate::ids::Digest;

/// Reads a fleet of one file. `file` is its name, for the sentences.
///
/// # Errors
/// Everything found wrong. Nothing of a file with an error is used.
pub fn parse(file: &str, text: &str) -> Result<Fleet, Vec<Diagnostic>> {
    parse_all(&[SourceFile { name: file.to_owned(), path: None, text: text.to_owned() }])
}

/// Reads a fleet of one or several files: the agents and profiles of all of them, and each other key
/// from the one file that has it. Relative host paths begin in the folder of their file.
///
/// # Errors
/// Everything found wrong, by file and place; of very much only the first. Nothing of files with an
/// error is used.
pub fn parse_all(files: &[SourceFile]) -> Result<Fleet, Vec<Diagnostic>> {
    let mut parts: Vec<Part<'_>> = files.iter().map(Part::read).collect();
    let fleet = fleet(&mut parts);
    let diagnostics = told(&mut parts);
    match fleet {
        None if files.is_empty() => Err(vec![Finding::of_file("there is no file").told("", None, "", &[])]),
        Some(fleet) if diagnostics.is_empty() => Ok(Fleet { digest: Some(digest(files)), ..fleet }),
        _ => Err(diagnostics),
    }
}

/// Of one file the digest of its text, of several the digest of those digests.
fn digest(files: &[SourceFile]) -> Digest {
    let digests: Vec<Digest> = files.iter().map(|file| Digest::of(file.text.as_bytes())).collect();
    match <[Digest; 1]>::try_from(digests) {
        Ok([one]) => one,
        Err(several) => Digest::of_json(&several),
    }
}

/// What is known of one of the files.
struct Part<'s> {
    source: &'s SourceFile,
    outline: Outline<'s>,
    /// What could be read of it; nothing when nothing could.
    file: Option<FleetFile>,
    report: Report,
}

impl<'s> Part<'s> {
    fn read(source: &'s SourceFile) -> Self {
        let mut part = Self { source, outline: Outline::default(), file: None, report: Report::default() };
        let outlined = sound(&source.text).and_then(|text| Ok((text, Outline::read(text)?)));
        match outlined {
            Err(finding) => part.report.findings.push(finding),
            Ok((_, outline)) if outline.is_empty() => {
                let finding = Finding::of_file("the file says nothing: a fleet file has at least the key `agents`");
                part.report.findings.push(finding.advised(NO_AGENTS.to_owned()));
            }
            Ok((text, outline)) => {
                part.file = read::read(text, &outline, &mut part.report);
                part.outline = outline;
            }
        }
        let folder = source.path.as_deref().and_then(Path::parent);
        if let Some(file) = &mut part.file {
            host::absolutise(file, folder, &mut part.report.findings);
        }
        part
    }

    fn tell(&self, finding: Finding, lines: &[&str]) -> Diagnostic {
        let place = self.outline.place(&finding.path, finding.spot);
        let path = self.outline.path_text(&finding.path);
        finding.told(&self.source.name, place, &path, lines)
    }
}

const NO_AGENTS: &str = "write `agents: {}` for a fleet of none";

/// The fleet that the files come to, as far as they could be read. What is found wrong goes to the file
/// that it stands in.
fn fleet(parts: &mut [Part<'_>]) -> Option<Fleet> {
    let files = parts.iter_mut().map(|part| Some((part.file.take()?, part.outline.top_keys())));
    let (file, repeats) = unite(files.collect::<Option<_>>()?);
    let agents = parts.iter().any(|part| part.outline.has("agents"));
    for repeat in repeats {
        let finding = twice(parts, &repeat);
        parts[repeat.second].report.findings.push(finding);
    }
    if !agents {
        let place = parts.first().and_then(|part| part.outline.beginning()).unwrap_or(Place { line: 1, column: 1 });
        let finding = Finding::in_text(place, "the key `agents` is missing").advised(NO_AGENTS.to_owned());
        parts.first_mut()?.report.findings.push(finding);
    }
    let contradictions = match resolve(&file) {
        Ok(fleet) => return Some(fleet),
        Err(contradictions) => contradictions,
    };
    let removed: Vec<Vec<String>> = parts.iter().flat_map(|part| part.report.removed.clone()).collect();
    let mut told = BTreeSet::new();
    for finding in contradictions.into_iter().filter(|finding| !read::follows(finding, &removed)) {
        if told.len() > FINDINGS_MAX {
            break;
        }
        let reach = |path: &[String]| parts.iter().map(|part| part.outline.reach(path)).max();
        let finding = layer::where_written(&file, finding, reach);
        // What is wrong in a layer is wrong in every agent that it lies under.
        if !told.insert((finding.path.clone(), finding.message.clone())) {
            continue;
        }
        // Of several that reach as far the first, which `max_by_key` alone would not take.
        if let Some(part) = parts.iter_mut().rev().max_by_key(|part| part.outline.reach(&finding.path)) {
            let path = part.outline.narrowed(&finding.path, &read::named(&finding.message));
            part.report.findings.push(Finding { path, ..finding });
        }
    }
    None
}

fn twice(parts: &[Part<'_>], repeat: &Repeat) -> Finding {
    let first = &parts[repeat.first];
    let place = first.outline.place(&repeat.path, Spot::Key);
    let place = place.map_or_else(String::new, |place| format!(":{}:{}", place.line, place.column));
    let name = repeat.path.last().map_or("", String::as_str);
    Finding::of_key(&repeat.path, format!("`{name}` is in two files; the first is {}{place}", first.source.name))
}

/// The findings of all files as people read them, in the order of the texts.
fn told(parts: &mut [Part<'_>]) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    let mut more = false;
    for part in parts {
        let findings = std::mem::take(&mut part.report.findings);
        if findings.is_empty() {
            continue;
        }
        more |= findings.len() >= FINDINGS_MAX;
        let lines = lines(part.source.text.strip_prefix('\u{feff}').unwrap_or(&part.source.text));
        let mut own: Vec<Diagnostic> = findings.into_iter().map(|finding| part.tell(finding, &lines)).collect();
        own.sort_by_key(|diagnostic| diagnostic.place);
        diagnostics.extend(own);
    }
    // What an alias repeats is wrong once, where it is written.
    let mut seen = BTreeSet::new();
    diagnostics.retain(|diagnostic: &Diagnostic| {
        diagnostic.place.is_none_or(|place| seen.insert((diagnostic.file.clone(), place, diagnostic.message.clone())))
    });
    more |= diagnostics.len() > FINDINGS_MAX;
    diagnostics.truncate(FINDINGS_MAX);
    if let Some(last) = diagnostics.last().filter(|_| more) {
        let finding = Finding::of_file("there may be more errors: reading ended here");
        diagnostics.push(finding.told(&last.file.clone(), None, "", &[]));
    }
    diagnostics
}

#[cfg(test)]
mod tests;
