use std::path::Path;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use vm_agent_daemon::machines::multipass::{Health, Program, health};
use vm_agent_daemon::machines::{Acceleration, Host, Programs, Runtimes};
use vm_agent_schemas::api::API_VERSION;

use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::table::{Cell, Table};
use crate::ui::{BUSY, GOOD, OutputArgs};

/// Look at what this host has for machines, and say what to do about what is missing
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    /// What was looked at.
    name: &'static str,
    /// Whether it is as it should be.
    ok: bool,
    /// What was found, or what to do.
    detail: String,
}

/// Without it nothing is amiss: there is another driver for machines.
const ABSENT: &str = "not installed; only agents of driver `multipass` need it: https://canonical.com/multipass";

pub(crate) async fn run(context: &mut Context, args: DoctorArgs) -> CommandResult {
    let state_dir = context.place.here("doctor")?;
    let program = std::env::current_exe().map_err(|error| CommandError::io("this program can't be found", &error))?;
    let mut findings = match Program::find() {
        Some(program) => of_multipass(&health(&program).await),
        None => vec![Finding { name: "multipass", ok: true, detail: ABSENT.to_owned() }],
    };
    match Programs::find() {
        Ok(programs) => findings.extend(of_host(&Host::look(&programs).await)),
        Err(missing) => findings.push(Finding { name: "qemu", ok: false, detail: missing.to_string() }),
    }
    findings.push(runtime(&program, state_dir));
    let document = json!({"apiVersion": API_VERSION, "kind": "Diagnosis", "items": findings});
    context.ui.document(args.output.output, &document, || table(&findings))?;
    Ok(Exit::SUCCESS)
}

fn of_host(host: &Host) -> Vec<Finding> {
    let acceleration = format!("{}: {}", host.acceleration.as_str(), host.reason);
    let sandbox = if host.sandbox { "QEMU locks itself in" } else { "this QEMU was built without its sandbox" };
    vec![
        Finding { name: "qemu", ok: true, detail: format!("version {}", host.version) },
        Finding { name: "acceleration", ok: host.acceleration != Acceleration::Emulation, detail: acceleration },
        Finding { name: "sandbox", ok: host.sandbox, detail: sandbox.to_owned() },
    ]
}

fn of_multipass(health: &Health) -> Vec<Finding> {
    let versions = health.versions.map(|found| match found.daemon {
        Some(daemon) if daemon == found.client => format!("version {daemon}"),
        Some(daemon) => format!("version {}, its daemon {daemon}", found.client),
        None => format!("version {}", found.client),
    });
    let lacks = (!health.lacks.is_empty()).then(|| format!("without {}", health.lacks.join(", ")));
    let detail = [versions, lacks, health.trouble.clone()].into_iter().flatten().collect::<Vec<_>>().join("; ");
    vec![Finding { name: "multipass", ok: health.trouble.is_none(), detail }]
}

fn runtime(program: &Path, state_dir: &Path) -> Finding {
    let found = Runtimes::new(program, state_dir).find();
    let ok = found.is_ok();
    let detail = found.map_or_else(|missing| missing.to_string(), |path| path.display().to_string());
    Finding { name: "runtime", ok, detail }
}

fn table(findings: &[Finding]) -> String {
    let mut table = Table::new(&["WHAT", "STATE", "DETAIL"]);
    for Finding { name, ok, detail } in findings {
        let state = if *ok { Cell::new(&"ok", GOOD) } else { Cell::new(&"warning", BUSY) };
        table.row(vec![(*name).into(), state, detail.into()]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_daemon::machines::multipass::{Version, Versions};

    #[test]
    fn of_multipass_is_told_what_it_is_what_it_lacks_and_what_to_do() {
        let versions = Versions { client: Version::new(1, 16, 3), daemon: Some(Version::new(1, 13, 1)) };
        let health = Health { versions: Some(versions), trouble: None, lacks: versions.common().lacks() };
        let told = &of_multipass(&health)[0];
        assert!(
            told.ok && told.detail.starts_with("version 1.16.3, its daemon 1.13.1; without a forced stop"),
            "{told:?}"
        );
        let versions = Versions { daemon: None, ..versions };
        let trouble = Some("its daemon does not answer; start it".to_owned());
        let told = &of_multipass(&Health { versions: Some(versions), trouble, lacks: Vec::new() })[0];
        assert_eq!((told.ok, told.detail.as_str()), (false, "version 1.16.3; its daemon does not answer; start it"));
    }

    #[test]
    fn what_is_not_as_it_should_be_stands_out_with_its_reason() {
        let host = Host {
            version: "7.2.0".into(),
            acceleration: Acceleration::Emulation,
            reason: "the processor shows neither vmx nor svm".into(),
            sandbox: true,
        };
        let findings = of_host(&host);
        let shown = anstream::adapter::strip_str(&table(&findings)).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].contains("ok") && lines[1].ends_with("version 7.2.0"), "{shown}");
        assert!(
            lines[2].contains("warning") && lines[2].ends_with("emulation: the processor shows neither vmx nor svm")
        );
        let document: serde_json::Value = serde_json::to_value(&findings).unwrap();
        assert_eq!(document[1]["ok"], false);
    }
}
