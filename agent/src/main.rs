//! The runtime as a program of its own: `vm-agent-runtime <folder>`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(folder), None) => vm_agent_runtime::main(&PathBuf::from(folder)),
        _ => vm_agent_runtime::usage(),
    }
}
