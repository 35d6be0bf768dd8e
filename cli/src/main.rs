//! The `vm-agent` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    vm_agent_cli::main(std::env::args_os())
}
