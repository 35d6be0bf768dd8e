//! The runtime as it goes into machines, for the tests of drivers whose machines are of this host's system.

fn main() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    vm_agent_runtime::program(&arguments)
}
