//! What an agent's spec may not say although each of its values is right by itself.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use url::Url;

use super::diagnostic::{Finding, nearest};
use super::file::DriverName;
use super::image::ImageReference;
use super::provision::Provision;
use super::resolve::{AgentSpec, TaskSpec};
use crate::names::TaskName;
use crate::task::{Content, Job, OUTPUT_MAX, Retry, Terms, Work};
use crate::units::ByteSize;

/// Most bytes that an agent's environment, labels, files and services may have together, and most that one
/// task may have. Each travels to the runtime in one message, whose limit is [`crate::wire::TEXT_MAX`].
const CONFIGURATION_MAX: usize = 128 * 1024;

/// Most bytes that cloud-init may be told: what some clouds take, so that what goes here goes there.
const CLOUD_INIT_MAX: usize = 64 * 1024;

/// How many tasks a runtime may do at a time.
const SLOTS_MAX: u32 = 64;

/// Most attempts that a task can ask for.
const ATTEMPTS_MAX: u32 = 1000;

/// Longest key of a task, in characters.
const KEY_MAX: usize = 128;

/// What is wrong with one agent, each at its path.
struct Findings<'a> {
    /// The path of the agent.
    at: &'a [String],
    found: &'a mut Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, keys: &[&str], message: impl Into<String>) {
        self.hinted(keys, message, None);
    }

    fn hinted(&mut self, keys: &[&str], message: impl Into<String>, near: Option<String>) {
        let at: Vec<String> = self.at.iter().cloned().chain(keys.iter().map(|&key| key.to_owned())).collect();
        self.found.push(Finding::at(&at, message.into()).hinted(near));
    }
}

/// Finds what the types alone can't refuse. `path` is that of the agent.
pub(super) fn check_agent(spec: &AgentSpec, path: &[String], found: &mut Vec<Finding>) {
    let mut findings = Findings { at: path, found };
    if spec.cpus == 0 {
        findings.add(&["cpus"], "a machine has at least 1 processor");
    }
    check_machine(spec, &mut findings);
    if spec.image.trim().is_empty() {
        findings.add(&["image"], "an image has a name");
    }
    if !(1..=SLOTS_MAX).contains(&spec.slots) {
        findings.add(&["slots"], format!("an agent does from 1 to {SLOTS_MAX} tasks at a time"));
    }
    if spec.idle.is_some_and(|idle| idle.after.get().is_zero()) {
        findings.add(&["idle"], "an agent is idle after more than no time");
    }
    check_variables(&["env"], spec.env.keys(), &mut findings);
    check_variables(&["secrets"], spec.secrets.keys(), &mut findings);
    for name in spec.env.keys().filter(|name| spec.secrets.contains_key(*name)) {
        findings.add(&["secrets", name], format!("`{name}` is in `env` too, where everybody sees it"));
    }
    check_services(spec, &mut findings);
    check_provision(spec, &mut findings);
    if spec.warm && spec.driver == Some(DriverName::Local) {
        findings.add(&["warm"], "driver `local` makes no machine that could begin as a copy of another");
    }
    if !spec.mounts.is_empty() && spec.driver == Some(DriverName::Qemu) {
        findings
            .add(&["mounts"], "driver `qemu` has no folders of the host in its machines; `vm-agent cp` copies them");
    }
    if spec.driver == Some(DriverName::Multipass) {
        for place in spec.mounts.iter().filter(|(_, mount)| !mount.writable).map(|(place, _)| place) {
            let message = "driver `multipass` can't keep a machine from writing to what it mounts; write \
                           `writable: true`, or copy it: `vm-agent cp`";
            findings.add(&["mounts", place], message);
        }
    }
    check_places(spec, &mut findings);
    check_size(spec, &mut findings);
    for (name, task) in &spec.tasks {
        check_task(spec, name, task, &mut findings);
    }
    check_order(&spec.tasks, &mut findings);
}

fn check_services(spec: &AgentSpec, findings: &mut Findings<'_>) {
    for (name, service) in &spec.services {
        let name = name.as_str();
        if service.exec.is_empty() {
            findings.add(&["services", name, "exec"], NOTHING_TO_RUN);
        }
        check_variables(&["services", name, "env"], service.env.keys(), findings);
        if service.probe.as_ref().is_some_and(|probe| probe.exec.is_empty()) {
            findings.add(&["services", name, "probe", "exec"], NOTHING_TO_RUN);
        }
        if service.probe.as_ref().is_some_and(|probe| probe.every.get().is_zero() || probe.failures == 0) {
            findings.add(&["services", name, "probe"], "`every` and `failures` are more than nothing");
        }
    }
}

/// What a machine gets at its birth. Where the driver is not written down it is refused once it is known.
fn check_provision(spec: &AgentSpec, findings: &mut Findings<'_>) {
    if let Some((key, message)) = Provision::of(spec).obstacle(spec.driver, &spec.image) {
        findings.add(&[key], message);
    }
    let size = serde_json::to_string(&spec.cloud_init).map_or(0, |text| text.len());
    if size > CLOUD_INIT_MAX {
        findings
            .add(&["cloudInit"], format!("cloud-init is told {size} bytes here; at most {CLOUD_INIT_MAX} are allowed"));
    }
}

fn check_places(spec: &AgentSpec, findings: &mut Findings<'_>) {
    for (key, places) in [("files", spec.files.keys().collect::<Vec<_>>()), ("mounts", spec.mounts.keys().collect())] {
        for place in places.into_iter().filter(|place| !is_inside(place)) {
            findings.add(&[key, place], no_path(place));
        }
    }
}

fn check_size(spec: &AgentSpec, findings: &mut Findings<'_>) {
    let sizes = [
        texts_of(&spec.env),
        texts_of(&spec.labels),
        spec.files.iter().map(|(path, file)| path.len() + file.content.len()).sum(),
        serde_json::to_string(&spec.services).map_or(0, |text| text.len()),
    ];
    let size: usize = sizes.iter().sum();
    if size > CONFIGURATION_MAX {
        let message = format!(
            "environment, labels, files and services have {size} bytes together; at most {CONFIGURATION_MAX} are allowed"
        );
        findings.add(&[], message);
    }
}

/// The least memory that Multipass gives a machine. Where another driver would take less, a unit was forgotten.
const MEMORY_LEAST: ByteSize = ByteSize::from_mib(128);
/// The least disk that Multipass gives a machine.
const DISK_LEAST: ByteSize = ByteSize::from_mib(512);

/// Sizes that no machine has, and images that none can be made of. An agent of driver `local` is no machine.
fn check_machine(spec: &AgentSpec, findings: &mut Findings<'_>) {
    if spec.driver.is_none_or(|driver| driver == DriverName::Local) {
        return;
    }
    // What the images of other drivers are called, only they know.
    if spec.driver == Some(DriverName::Qemu)
        && let Err(error) = spec.image.parse::<ImageReference>()
    {
        findings.add(&["image"], error.to_string());
    }
    for (key, size, least) in [("memory", spec.memory, MEMORY_LEAST), ("disk", spec.disk, DISK_LEAST)] {
        if size < least {
            findings.add(&[key], format!("a machine has at least {least}, and not {size}"));
        }
    }
}

const NOTHING_TO_RUN: &str = "there is nothing to run";

fn check_task(spec: &AgentSpec, name: &TaskName, task: &TaskSpec, findings: &mut Findings<'_>) {
    let at = |key| ["tasks", name.as_str(), key];
    check_work(&task.job.work, at, findings);
    check_job(spec, &task.job, at, findings);
    check_terms(&task.terms, at, findings);
    if let Some(before) = task.when.after().filter(|before| !spec.tasks.contains_key(*before)) {
        let near = nearest(before.as_str(), spec.tasks.keys().filter(|it| *it != name).map(TaskName::as_str));
        let message = format!("there is no task `{before}` in this agent to come after");
        findings.hinted(&["tasks", name.as_str(), "when", "after"], message, near);
    }
    let size = serde_json::to_string(&task.job).map_or(0, |text| text.len());
    if size > CONFIGURATION_MAX {
        let message = format!("the task has {size} bytes; at most {CONFIGURATION_MAX} are allowed");
        findings.add(&["tasks", name.as_str()], message);
    }
}

fn check_work<'a>(work: &Work, at: impl Fn(&'a str) -> [&'a str; 3], findings: &mut Findings<'_>) {
    let mut paths = Vec::new();
    let mut words = Vec::new();
    match work {
        Work::Exec { argv } if runs_nothing(argv) => findings.add(&at("exec"), NOTHING_TO_RUN),
        Work::Build { argv } | Work::Test { argv } | Work::Deploy { argv }
            if !argv.is_empty() && runs_nothing(argv) =>
        {
            findings.add(&at("exec"), NOTHING_TO_RUN);
        }
        Work::Exec { .. } | Work::Build { .. } | Work::Test { .. } | Work::Deploy { .. } => {}
        Work::Script { interpreter, script, .. } => {
            if interpreter.first().is_none_or(String::is_empty) {
                findings.add(&at("interpreter"), "an interpreter is a program");
            }
            if script.trim().is_empty() {
                findings.add(&at("script"), NOTHING_TO_RUN);
            }
        }
        Work::FileRead { path } => paths.push(path),
        Work::FileWrite { path, content, .. } => {
            paths.push(path);
            if matches!(content, Content::Base64(text) if STANDARD.decode(text).is_err()) {
                findings.add(&at("content"), "this is no base64: the standard alphabet, padded with `=`");
            }
        }
        Work::GitClone { url, path, reference, .. } => {
            paths.extend(path);
            words.extend([("url", url)]);
            words.extend(reference.iter().map(|word| ("ref", word)));
            if url.parse::<Url>().is_ok_and(|url| url.password().is_some()) {
                findings.add(&at("url"), "everybody sees a password that is in an address: give it as a secret");
            }
        }
        Work::GitPull { path, remote, reference } | Work::GitPush { path, remote, reference } => {
            paths.extend(path);
            words.extend(remote.iter().map(|word| ("remote", word)).chain(reference.iter().map(|word| ("ref", word))));
        }
    }
    for path in paths.into_iter().filter(|path| !is_inside(path)) {
        findings.add(&at("path"), no_path(path));
    }
    // What begins with a hyphen would be an option to git.
    for (key, word) in words.into_iter().filter(|(_, word)| word.trim().is_empty() || word.starts_with('-')) {
        findings.add(&at(key), format!("`{word}` names nothing: it is empty or begins with `-`"));
    }
}

/// Whether a command comes to nothing, with or without a shell.
fn runs_nothing(argv: &[String]) -> bool {
    match argv {
        [shell, option, line] if shell == "/bin/sh" && option == "-c" => line.trim().is_empty(),
        _ => argv.first().is_none_or(String::is_empty),
    }
}

fn check_job<'a>(spec: &AgentSpec, job: &Job, at: impl Fn(&'a str) -> [&'a str; 3], findings: &mut Findings<'_>) {
    check_variables(&at("env"), job.env.keys(), findings);
    for secret in job.secrets.iter().flatten().filter(|secret| !spec.secrets.contains_key(*secret)) {
        let near = nearest(secret, spec.secrets.keys().map(String::as_str));
        findings.hinted(&at("secrets"), format!("`{secret}` is none of the agent's secrets"), near);
    }
    if job.user.as_ref().is_some_and(|user| user.is_empty() || user.contains([':', '/', '\0', '\n'])) {
        findings.add(&at("user"), "this is no name of a user");
    }
    if job.output.bytes() == 0 || job.output > OUTPUT_MAX {
        findings.add(&at("output"), format!("of an output from 1 byte to {OUTPUT_MAX} can be kept"));
    }
    for pattern in job.artifacts.iter().filter(|pattern| !is_inside(pattern)) {
        findings.add(&at("artifacts"), no_path(pattern));
    }
}

fn check_terms<'a>(terms: &Terms, at: impl Fn(&'a str) -> [&'a str; 3], findings: &mut Findings<'_>) {
    if terms.timeout.get().is_zero() {
        findings.add(&at("timeout"), "a task runs for more than no time");
    }
    if terms.key.as_ref().is_some_and(|key| !is_key(key)) {
        let message = format!("a key is from 1 to {KEY_MAX} characters, none of them a control character");
        findings.add(&at("key"), message);
    }
    let Some(Retry { attempts, on, backoff, backoff_max }) = &terms.retry else { return };
    if !(1..=ATTEMPTS_MAX).contains(attempts) {
        findings.add(&at("retry"), format!("a task has from 1 to {ATTEMPTS_MAX} attempts"));
    }
    if on.is_empty() {
        findings.add(&[&at("retry")[..], &["on"]].concat(), "`on` names no end after which it is tried again");
    }
    if backoff > backoff_max {
        findings.add(&at("retry"), format!("`backoff` {backoff} is longer than `backoffMax` {backoff_max}"));
    }
}

fn is_key(key: &str) -> bool {
    !key.trim().is_empty() && key.chars().count() <= KEY_MAX && !key.contains(char::is_control)
}

/// Finds a round of tasks that come after each other: none of them could ever run. Each comes after at
/// most one, so from each there is one way back.
fn check_order(tasks: &BTreeMap<TaskName, TaskSpec>, findings: &mut Findings<'_>) {
    let mut settled: BTreeSet<&TaskName> = BTreeSet::new();
    for start in tasks.keys() {
        let mut trail: Vec<&TaskName> = Vec::new();
        let mut next = Some(start);
        while let Some(name) = next.filter(|name| !settled.contains(name)) {
            if let Some(from) = trail.iter().position(|seen| *seen == name) {
                let round: Vec<&str> = trail[from..].iter().rev().map(|name| name.as_str()).collect();
                let message = format!("tasks come after each other: {} -> {}", round.join(" -> "), round[0]);
                findings.add(&["tasks", name.as_str(), "when", "after"], message);
                break;
            }
            trail.push(name);
            next = tasks.get(name).and_then(|task| task.when.after());
        }
        settled.extend(trail);
    }
}

fn texts_of(map: &BTreeMap<String, String>) -> usize {
    map.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn check_variables<'a>(at: &[&str], keys: impl Iterator<Item = &'a String>, findings: &mut Findings<'_>) {
    for key in keys.filter(|key| !is_variable(key)) {
        let path: Vec<&str> = at.iter().copied().chain([key.as_str()]).collect();
        findings.add(&path, format!("`{key}` is no name for an environment variable"));
    }
}

/// Whether a path of an agent leads where it says, and not out of the folder that it begins in.
fn is_inside(path: &str) -> bool {
    let mut components = std::path::Path::new(path).components().peekable();
    components.peek().is_some() && components.all(|part| part != std::path::Component::ParentDir)
}

fn no_path(path: &str) -> String {
    format!("`{path}` is no path in an agent: it is empty or has `..` in it")
}

fn is_variable(key: &str) -> bool {
    let mut bytes = key.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
