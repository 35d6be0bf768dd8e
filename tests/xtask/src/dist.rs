//! `cargo xtask dist`: the runtime as one file that runs in any Linux guest.
//!
//! It is linked statically, so that it needs nothing of the guest but its kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::{C_COMPILER, Machine};
use crate::run::{answer_of, cargo, root, run};

/// What it is built for when nobody says otherwise.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The profile of the root manifest that makes it small.
const PROFILE: &str = "dist";
const PROGRAM: &str = "vm-agent-runtime";

/// Builds the runtime for a target, and says what came of it.
///
/// # Errors
/// What is missing, or why what was built can't go into a guest.
pub(crate) fn build(target: &str, jobs: Option<u32>) -> Result<(), String> {
    Machine::look().need(&C_COMPILER)?;
    need_target(target)?;
    // A folder of its own: flags that differ would have everything built anew, here and at the next ordinary build.
    let folder = root().join("target/dist");
    let mut command = cargo(&["build", "--locked", "--package", PROGRAM, "--bin", PROGRAM, "--profile", PROFILE]);
    command
        .args(["--target", target])
        .arg("--target-dir")
        .arg(&folder)
        .env(flags_variable(target), "-C target-feature=+crt-static");
    if let Some(jobs) = jobs {
        command.arg("--jobs").arg(jobs.to_string());
    }
    run(command)?;
    // Cargo's own path has the profile in it; drivers look for one that has not.
    let (built, placed) = (folder.join(target).join(PROFILE).join(PROGRAM), folder.join(target).join(PROGRAM));
    let bytes = read(&built)?;
    let machine = static_machine(&bytes).map_err(|reason| format!("{} {reason}", built.display()))?;
    fs::copy(&built, &placed).map_err(|error| format!("{} can't be written: {error}", placed.display()))?;
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    let size = bytes.len() as f64 / 1e6;
    eprintln!("xtask: {}: {size:.1} MB, {machine}, linked statically", shown(&placed));
    Ok(())
}

/// The standard library of the target is a part of the toolchain that has to be there.
fn need_target(target: &str) -> Result<(), String> {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--print", "target-libdir", "--target", target]).current_dir(root());
    let remedy =
        || format!("Rust's standard library for {target} is missing; install it: `rustup target add {target}`");
    let folder = answer_of(rustc).map_err(|_| remedy())?;
    let mut files = fs::read_dir(folder.trim()).map_err(|_| remedy())?;
    let is_std = |name: &str| name.starts_with("libstd-");
    let found = files.any(|file| file.is_ok_and(|file| file.file_name().to_str().is_some_and(is_std)));
    if found { Ok(()) } else { Err(remedy()) }
}

/// The variable that gives flags to programs of the target alone, and not to what runs while they are built.
fn flags_variable(target: &str) -> String {
    format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_ascii_uppercase().replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{} can't be read: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).map_or_else(|_| path.to_owned(), PathBuf::from).display().to_string()
}

/// The machine that a program is for, if it is one for 64-bit Linux that needs no interpreter: no dynamic linker.
fn static_machine(bytes: &[u8]) -> Result<&'static str, &'static str> {
    const PT_INTERP: u32 = 3;
    let no_program = "is no 64-bit program";
    let number = |at: usize, len: usize| -> Result<u64, &'static str> {
        let bytes = at.checked_add(len).and_then(|end| bytes.get(at..end)).ok_or(no_program)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    };
    let at = |at: usize, len: usize| number(at, len).map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    // An ELF file of 64-bit numbers with the low byte first.
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Err(no_program);
    }
    let (table, size, count) = (at(32, 8)?, at(54, 2)?, at(56, 2)?);
    for entry in 0..count {
        if number(table.saturating_add(entry * size), 4)? == u64::from(PT_INTERP) {
            return Err("is linked dynamically: it would need the libraries of this machine in the guest");
        }
    }
    match at(18, 2)? {
        62 => Ok("x86_64"),
        183 => Ok("aarch64"),
        _ => Err("is for a machine that no driver makes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header for a machine, and one entry of its table.
    fn program(machine: u8, entry: u8) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = machine;
        (bytes[32], bytes[54], bytes[56]) = (64, 56, 1);
        bytes[64] = entry;
        bytes
    }

    #[test]
    fn a_static_program_is_told_from_one_that_needs_a_linker() {
        assert_eq!(static_machine(&program(62, 1)), Ok("x86_64"));
        assert_eq!(static_machine(&program(183, 1)), Ok("aarch64"));
        assert!(static_machine(&program(62, 3)).unwrap_err().starts_with("is linked dynamically"));
        assert!(static_machine(&program(3, 1)).is_err());
        for short in [0, 5, 40, 100] {
            assert!(static_machine(&program(62, 1)[..short.min(66)]).is_err(), "{short} bytes");
        }
    }

    #[test]
    fn this_very_test_is_linked_dynamically() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        if cfg!(all(target_os = "linux", not(target_feature = "crt-static"))) {
            assert!(static_machine(&own).unwrap_err().starts_with("is linked dynamically"));
        }
    }

    #[test]
    fn flags_are_given_to_the_target_alone() {
        assert_eq!(flags_variable("x86_64-unknown-linux-gnu"), "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS");
    }

    #[test]
    fn a_target_without_a_standard_library_is_told_with_its_remedy() {
        let sentence = need_target("riscv64gc-unknown-none-elf").unwrap_err();
        assert!(sentence.ends_with("`rustup target add riscv64gc-unknown-none-elf`"), "{sentence}");
    }
}
