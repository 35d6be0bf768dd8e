//! The program `multipass`, and the programs in its machines. All of it is in the library.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    vm_agent_multipass_double::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
