//! A load generator: as many runtimes as are asked for in one process, each speaking the real protocol
//! over a real socket, against a whole controller in another.
//!
//! It asserts nothing. What the figures have to be is for people to say.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

mod api;
mod fleet;
mod idle;
mod report;
mod server;
mod session;
mod tasks;
mod typing;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::fleet::Fleet;
use crate::report::{Format, Report};
use crate::server::Server;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measure a controller under load
#[derive(Parser)]
#[command(name = "vm-agent-load")]
struct Cli {
    #[command(subcommand)]
    measure: Option<Measure>,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
    /// How many runtimes
    #[arg(long, global = true, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    sessions: u32,
    /// How long each measure of a rate goes on, in seconds
    #[arg(long, global = true, default_value_t = 10)]
    seconds: u64,
    /// How the figures are printed
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Format,
    /// The program vm-agent-load-server. Without this the one beside this program
    #[arg(long, global = true)]
    server: Option<PathBuf>,
    /// Runtimes speak TLS, as those on other machines do
    #[arg(long, global = true)]
    tls: bool,
}

impl Options {
    fn lasting(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[derive(Subcommand)]
enum Measure {
    /// Everything below, and idle sessions with TLS as well (the default)
    All,
    /// Time until all are welcome, at first and again after all connections were cut; then memory for each
    /// idle session, and CPU
    Idle,
    /// Tasks accepted durably in a second, with so many requests under way
    Accept {
        /// How many
        #[arg(long, default_value_t = 256, value_parser = in_flight)]
        in_flight: usize,
    },
    /// From asking for a task to seeing its end, at an offered rate
    RoundTrip {
        /// Tasks offered in a second
        #[arg(long, default_value_t = 1000)]
        rate: u32,
    },
    /// What tasks write, in MB a second
    Output {
        /// How many tasks write at once
        #[arg(long, default_value_t = 16)]
        tasks: usize,
        /// How much each writes, in MiB
        #[arg(long, default_value_t = 8)]
        mebibytes: u64,
    },
    /// From a key to its echo through a stream
    Typing {
        /// How many keys
        #[arg(long, default_value_t = 1000)]
        keys: u64,
    },
}

/// Most requests under way: each has a connection of its own, of which the API serves 512 at a time, and this
/// program follows the events over one more and declares the fleet over another.
const IN_FLIGHT_MAX: usize = 510;

fn in_flight(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=IN_FLIGHT_MAX) => Ok(count),
        _ => Err(format!("it is a number from 1 to {IN_FLIGHT_MAX}: the API serves no more connections at a time")),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut report = Report::new(cli.options.sessions as usize);
    let measured = measure(cli.measure.unwrap_or(Measure::All), &cli.options, &mut report).await;
    // What was measured before a failure is worth its print.
    println!("{}", report.print(cli.options.output).trim_end());
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm-agent-load: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(what: Measure, options: &Options, report: &mut Report) -> Result<(), Failure> {
    raise_open_files(options.sessions)?;
    let mut ground = Ground::prepare(options).await?;
    match what {
        Measure::All => {
            idle::measure(&mut ground, false, options.lasting(), report).await?;
            typing::measure(&ground, 1000, report).await?;
            for in_flight in [16, 256] {
                tasks::accept(&ground, in_flight, options.lasting(), report).await?;
            }
            for rate in [50, 1000] {
                tasks::round_trip(&ground, rate, options.lasting(), report).await?;
            }
            tasks::output(&ground, 16, 8, report).await?;
            ground.leave(report).await?;
            // Anew: memory that was once taken is not given back, and would hide what sessions take.
            ground = Ground::prepare(options).await?;
            idle::measure(&mut ground, true, options.lasting(), report).await?;
        }
        Measure::Idle => idle::measure(&mut ground, options.tls, options.lasting(), report).await?,
        other => {
            ground.fleet.storm(options.tls).await?;
            ground.server.rest().await?;
            match other {
                Measure::All | Measure::Idle => {}
                Measure::Accept { in_flight } => tasks::accept(&ground, in_flight, options.lasting(), report).await?,
                Measure::RoundTrip { rate } => tasks::round_trip(&ground, rate, options.lasting(), report).await?,
                Measure::Output { tasks, mebibytes } => tasks::output(&ground, tasks, mebibytes, report).await?,
                Measure::Typing { keys } => typing::measure(&ground, keys, report).await?,
            }
        }
    }
    ground.leave(report).await
}

/// A controller, and the runtimes of its fleet.
struct Ground {
    server: Server,
    fleet: Fleet,
}

impl Ground {
    /// A fleet whose machines are made, and whose runtimes have not come yet.
    async fn prepare(options: &Options) -> Result<Self, Failure> {
        let program = match &options.server {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("vm-agent-load-server"),
        };
        let mut server = Server::start(&program).await?;
        let seeds = server.declare(options.sessions as usize).await?;
        server.rest().await?;
        Ok(Self { server, fleet: Fleet::new(seeds) })
    }

    async fn leave(mut self, report: &mut Report) -> Result<(), Failure> {
        if self.fleet.lost() > 0 {
            report.add("whole run", "sessions lost", f64::from(u32::try_from(self.fleet.lost())?), "");
        }
        self.fleet.cut().await;
        self.server.stop().await
    }
}

/// Each session takes a file descriptor here, and systems begin with few.
fn raise_open_files(sessions: u32) -> Result<(), Failure> {
    const BESIDE: u64 = 1000;
    let resource = rustix::process::Resource::Nofile;
    let mut limit = rustix::process::getrlimit(resource);
    let needed = u64::from(sessions) + BESIDE;
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        return Err(format!("{needed} open files are needed; raise the limit with `ulimit -Hn {needed}`").into());
    }
    if limit.current.is_some_and(|current| current < needed) {
        limit.current = Some(needed);
        rustix::process::setrlimit(resource, limit)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn more_requests_at_a_time_than_the_api_serves_are_refused_with_the_reason() {
        Cli::command().debug_assert();
        let asked = |count: &str| Cli::try_parse_from(["load", "accept", "--in-flight", count]);
        assert!(asked("510").is_ok());
        for count in ["0", "511", "many"] {
            let Err(refused) = asked(count) else { panic!("{count}") };
            assert!(refused.to_string().contains("from 1 to 510: the API serves no more"), "{refused}");
        }
    }
}
