//! Simulates the control plane: many seeds, or one with its trace.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

use std::process::ExitCode;
use std::time::Duration;

use vm_agent_simulation::run;

const USAGE: &str = "simulate [--seeds N] [--from SEED] [--limit SECONDS] | --seed SEED [--trace]";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |flag: &str| {
        let at = words.iter().position(|word| word == flag)?;
        Some(words.get(at + 1).and_then(|word| word.parse::<u64>().ok()).ok_or(flag.to_owned()))
    };
    let numbers = ["--seeds", "--from", "--limit", "--seed"].map(number);
    let [seeds, from, limit, seed] = match numbers.into_iter().map(Option::transpose).collect::<Result<Vec<_>, _>>() {
        Ok(numbers) => <[Option<u64>; 4]>::try_from(numbers).unwrap_or_default(),
        Err(flag) => {
            eprintln!("simulate: {flag} needs a number; {USAGE}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(seed) = seed.filter(|_| words.iter().any(|word| word == "--trace")) {
        let (result, lines) = run::traced(seed);
        lines.iter().for_each(|line| println!("{line}"));
        return match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(broken) => {
                eprintln!("seed {seed} broke {broken}");
                ExitCode::FAILURE
            }
        };
    }
    let (from, seeds) = seed.map_or((from.unwrap_or(0), seeds.unwrap_or(1000)), |seed| (seed, 1));
    match run::many(from, seeds, limit.map(Duration::from_secs)) {
        Ok(tally) => {
            println!("{tally}: every promise held");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}
