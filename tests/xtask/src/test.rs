//! `cargo xtask test`: each check runs, whatever became of those before it, and the last line says
//! what came of all.

use std::process::Command;

use crate::dist;
use crate::machine::{BROWSER, C_COMPILER, GIT, Machine, PYTHON, QEMU, SSH};
use crate::run::{answers, cargo, run, told};

/// Tells the browser test that there is a browser, so that it does not leave itself out.
const BROWSER_VARIABLE: &str = "VM_AGENT_TEST_BROWSER";
/// The same for tests that boot machines.
const MACHINES_VARIABLE: &str = "VM_AGENT_TEST_MACHINES";

/// Runs everything that can be tested on this machine.
///
/// # Errors
/// The last line, when something failed.
pub(crate) fn everything() -> Result<(), String> {
    let machine = Machine::look();
    for tool in [&C_COMPILER, &GIT, &PYTHON, &SSH] {
        machine.need(tool)?;
    }
    for component in ["fmt", "clippy"] {
        need_component(component)?;
    }
    let optional = [
        (BROWSER_VARIABLE, "the browser test", machine.need(&BROWSER)),
        // The runtime goes into them.
        (MACHINES_VARIABLE, "real machines", machine.need(&QEMU).and_then(|()| dist::build(dist::TARGET, None))),
    ];
    let (mut variables, mut left_out) = (Vec::new(), String::new());
    for (variable, tests, possible) in optional {
        match possible {
            Ok(()) => variables.push(variable),
            Err(reason) => {
                eprintln!("xtask: {tests}: left out: {reason}");
                left_out.push_str(&format!(", without {tests}"));
            }
        }
    }
    let checks = checks(answers("cargo", &["nextest", "--version"]), &variables);
    let names: Vec<String> = checks.iter().map(told).collect();
    let mut failed = Vec::new();
    for (check, name) in checks.into_iter().zip(&names) {
        eprintln!("xtask: {name}");
        if let Err(reason) = run(check) {
            failed.push(reason);
        }
    }
    if failed.is_empty() {
        eprintln!("xtask: all {} checks passed{left_out}", names.len());
        Ok(())
    } else {
        Err(format!("{} of {} checks failed{left_out}: {}", failed.len(), names.len(), failed.join("; ")))
    }
}

/// The checks, in order. Test runners differ in what they run: only cargo itself runs the examples in
/// documentation, and benchmarks are run once, as tests.
fn checks(nextest: bool, variables: &[&str]) -> Vec<Command> {
    let mut lines: Vec<&[&str]> = vec![
        &["fmt", "--all", "--check"],
        &["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
        // The tests run the very programs that people do.
        &["build", "--locked", "--workspace", "--bins"],
    ];
    if nextest {
        lines.push(&["nextest", "run", "--locked", "--workspace", "--no-fail-fast"]);
        lines.push(&["test", "--locked", "--workspace", "--doc"]);
    } else {
        lines.push(&["test", "--locked", "--workspace"]);
    }
    lines.push(&["test", "--locked", "--workspace", "--bench", "*"]);
    lines
        .into_iter()
        .map(|line| {
            let mut command = cargo(line);
            command.envs(variables.iter().map(|variable| (variable, "1")));
            command
        })
        .collect()
}

/// A part of the toolchain that a minimal installation lacks.
fn need_component(name: &str) -> Result<(), String> {
    if answers("cargo", &[name, "--version"]) {
        return Ok(());
    }
    let component = if name == "fmt" { "rustfmt" } else { name };
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", component]);
    run(rustup).map_err(|reason| format!("{component} is missing: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doctests_and_benchmarks_run_with_either_test_runner() {
        let lines = |nextest| checks(nextest, &[]).iter().map(told).collect::<Vec<_>>();
        assert!(lines(true).contains(&"cargo test --locked --workspace --doc".to_owned()));
        assert!(lines(false).contains(&"cargo test --locked --workspace".to_owned()));
        for nextest in [true, false] {
            assert!(lines(nextest).contains(&"cargo test --locked --workspace --bench *".to_owned()));
        }
    }

    #[test]
    fn what_can_be_tested_here_must_not_leave_itself_out() {
        let told_so = |command: &Command| command.get_envs().any(|(name, _)| name == BROWSER_VARIABLE);
        assert!(checks(true, &[BROWSER_VARIABLE]).iter().all(told_so));
        assert!(!checks(true, &[MACHINES_VARIABLE]).iter().any(told_so));
    }
}
