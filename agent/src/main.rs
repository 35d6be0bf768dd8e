//! The runtime as a program of its own: `vm-agent-runtime FOLDER`.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    vm_agent_runtime::program(&arguments)
}
