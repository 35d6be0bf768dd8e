//! The double of the command `multipass`, for the tests of driver `multipass`.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    vm_agent_multipass_double::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
