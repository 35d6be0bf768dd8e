//! The double of the command `multipass`, for fleets under test: Cargo builds a package's own programs along with its
//! tests.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    vm_agent_multipass_double::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
