//! The developer's commands, as `cargo xtask COMMAND`.

#![expect(clippy::print_stderr, reason = "a program for a terminal")]

mod dist;
mod machine;
mod mutants;
mod run;
mod test;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::machine::{C_COMPILER, Machine};
use crate::run::{cargo, root};

/// The developer's commands
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Build vm-agent and bring up fleet.example.yaml
    Demo {
        /// What else to say to `vm-agent up`, such as --detach or --state-dir DIR
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        up: Vec<OsString>,
    },
    /// Test everything that can be tested on this machine
    Test,
    /// Simulate the control plane: --seeds N [--from SEED] [--limit SECONDS], or --seed SEED [--trace]
    Simulate {
        /// What to simulate; a thousand seeds from 0 when nothing is said
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Break the product in every way of tests/mutations, and see that the simulation notices
    Mutants {
        /// Only those whose name has this in it
        only: Option<String>,
        /// How long the simulation may take to notice, in seconds
        #[arg(long, default_value_t = 60)]
        limit: u64,
    },
    /// Write the JSON Schemas and the OpenAPI document of schemas/ anew, from the types
    Schemas {
        /// Write nothing, and fail when they are out of date
        #[arg(long)]
        check: bool,
    },
    /// Run the benchmarks
    Bench {
        /// What else to say to criterion, such as a part of a benchmark's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        criterion: Vec<OsString>,
    },
    /// Measure how long agents take whose machines start warm, with real machines
    Warm,
    /// Build the runtime for guests: one small static program, in target/dist/TARGET/vm-agent-runtime
    Dist {
        /// What to build it for, as Rust names targets
        #[arg(long, default_value = dist::TARGET)]
        target: String,
        /// How many jobs cargo may run at once
        #[arg(long, short)]
        jobs: Option<u32>,
    },
    /// Measure a controller under a thousand runtimes: memory, CPU, connect storms, tasks, output, echoes
    Load {
        /// What else to say to the load generator, such as --sessions N, -o json or one measure's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Demo { up } => demo(&up),
        Command::Test => test::everything(),
        Command::Simulate { args } => simulate(&args),
        Command::Mutants { only, limit } => mutants::run(only.as_deref(), limit),
        Command::Schemas { check } => schemas(check),
        Command::Bench { criterion } => bench(&criterion),
        Command::Warm => warm(),
        Command::Dist { target, jobs } => dist::build(&target, jobs),
        Command::Load { args } => load(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn demo(up: &[OsString]) -> Result<(), String> {
    Machine::look().need(&C_COMPILER)?;
    let mut command = cargo(&["run", "--release", "--locked", "--package", "vm-agent-cli", "--bin", "vm-agent", "--"]);
    command.arg("up").arg("--file").arg(root().join("fleet.example.yaml")).args(up);
    // In place of this program: signals, terminal and exit code are those of `vm-agent up`.
    Err(run::instead(command))
}

fn simulate(args: &[OsString]) -> Result<(), String> {
    Machine::look().need(&C_COMPILER)?;
    let mut command = cargo(&["run", "--quiet", "--locked", "--package", "vm-agent-simulation", "--"]);
    command.args(args);
    // In place of this program: its exit code is that of the simulation.
    Err(run::instead(command))
}

/// The tests that compare what is checked in with the types also write it.
fn schemas(check: bool) -> Result<(), String> {
    let tests: [&[&str]; 2] = [
        &["--package", "vm-agent-schemas", "--test", "checked_in", "the_checked_in"],
        &["--package", "vm-agent-daemon", "--lib", "the_checked_in_openapi_document"],
    ];
    for arguments in tests {
        let mut command = cargo(&["test", "--quiet", "--locked"]);
        command.args(arguments);
        if !check {
            command.env("UPDATE_SCHEMAS", "1");
        }
        run::run(command)?;
    }
    eprintln!("xtask: schemas/ {}", if check { "is as the types say" } else { "is written anew" });
    Ok(())
}

fn bench(criterion: &[OsString]) -> Result<(), String> {
    Machine::look().need(&C_COMPILER)?;
    // One of them measures the very program that people run.
    run::run(cargo(&["build", "--release", "--locked", "--package", "vm-agent-cli", "--bin", "vm-agent"]))?;
    let mut command = cargo(&["bench", "--locked", "--workspace", "--bench", "*", "--"]);
    command.args(criterion);
    run::run(command)
}

fn warm() -> Result<(), String> {
    dist::build(dist::TARGET, None)?;
    run::run(cargo(&["build", "--release", "--locked", "--package", "vm-agent-cli", "--bin", "vm-agent"]))?;
    run::run(cargo(&["bench", "--locked", "--package", "vm-agent-tests", "--bench", "warm"]))
}

fn load(args: &[OsString]) -> Result<(), String> {
    Machine::look().need(&C_COMPILER)?;
    // The generator starts the server that lies beside it.
    run::run(cargo(&["build", "--release", "--locked", "--package", "vm-agent-load-server"]))?;
    let mut command = cargo(&["run", "--release", "--locked", "--package", "vm-agent-load", "--"]);
    command.args(args);
    // In place of this program: its exit code is that of the generator.
    Err(run::instead(command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Command::command().debug_assert();
    }

    #[test]
    fn what_follows_demo_goes_to_up_as_it_is() {
        let line = ["xtask", "demo", "--detach", "--state-dir", "/tmp/x"];
        let Command::Demo { up } = Command::parse_from(line) else { panic!("it is the demo") };
        assert_eq!(up, line[2..]);
    }
}
