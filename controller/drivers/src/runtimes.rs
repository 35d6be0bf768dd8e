//! The runtime that goes into machines: a static program for Linux, which is another one than this host's
//! where this host is another system.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What it is called.
const NAME: &str = "vm-agent-runtime";

/// The variable that names it, over all places where it is looked for.
const VARIABLE: &str = "VM_AGENT_RUNTIME";

/// Where runtimes for guests may lie.
#[derive(Debug, Clone)]
pub struct Runtimes {
    places: Vec<PathBuf>,
}

/// There is none that machines can run.
#[derive(Debug, thiserror::Error)]
#[error(
    "the runtime for machines is missing{}; build it with `cargo xtask dist` and put it beside `vm-agent`, in {}, or \
     name it in {VARIABLE}",
    if found.is_empty() { String::new() } else { format!(" ({})", found.join("; ")) },
    folder.display()
)]
pub struct MissingRuntime {
    /// What was found in its stead, and what is wrong with it.
    found: Vec<String>,
    /// The folder of the state folder for it.
    folder: PathBuf,
}

impl Runtimes {
    /// Looks beside this program, and in the folder `runtimes` of the state folder.
    #[must_use]
    pub fn new(program: &Path, state_dir: &Path) -> Self {
        let named = std::env::var_os(VARIABLE).map(PathBuf::from);
        Self::among(named, program.parent(), &state_dir.join("runtimes"))
    }

    fn among(named: Option<PathBuf>, beside: Option<&Path>, state: &Path) -> Self {
        let full = format!("{NAME}-{}-linux", std::env::consts::ARCH);
        let folders = beside.into_iter().chain([state]);
        let usual = folders.flat_map(|folder| [folder.join(&full), folder.join(NAME)]);
        Self { places: named.into_iter().chain(usual).collect() }
    }

    /// The first that machines can run.
    ///
    /// # Errors
    /// When there is none, with the remedy.
    pub fn find(&self) -> Result<PathBuf, MissingRuntime> {
        let mut found = Vec::new();
        for place in &self.places {
            match check(place) {
                Ok(()) => return Ok(place.clone()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => found.push(format!("{} {error}", place.display())),
            }
        }
        let folder = self.places.last().and_then(|last| last.parent()).unwrap_or(Path::new(".")).to_owned();
        Err(MissingRuntime { found, folder })
    }
}

/// Whether a file is a program that a guest can run: for Linux, of this host's architecture, and complete in
/// itself, as a guest need not have any library. Its header says so.
fn check(path: &Path) -> io::Result<()> {
    /// Asks for a program that loads its libraries.
    const INTERPRETER: u32 = 3;
    let wrong = |what: &str| Err(io::Error::other(what.to_owned()));
    let mut file = File::open(path)?;
    let mut header = [0; 64];
    if file.read_exact(&mut header).is_err() || header[..6] != *b"\x7fELF\x02\x01" {
        return wrong("is no program for 64-bit Linux");
    }
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if half(18) != machine() {
        return wrong("is for another architecture");
    }
    let table = u64::from_le_bytes(std::array::from_fn(|at| header[32 + at]));
    let (size, count) = (usize::from(half(54)), half(56));
    file.seek(SeekFrom::Start(table))?;
    for _ in 0..count {
        let mut entry = vec![0; size.max(4)];
        file.read_exact(&mut entry)?;
        if u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) == INTERPRETER {
            return wrong("is not static");
        }
    }
    Ok(())
}

/// ELF's number for this host's architecture.
const fn machine() -> u16 {
    const X86_64: u16 = 62;
    const AARCH64: u16 = 183;
    if cfg!(target_arch = "aarch64") { AARCH64 } else { X86_64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The header of a program, with one entry of this type in its table.
    fn program(machine: u16, entry: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&entry.to_le_bytes());
        bytes
    }

    #[test]
    fn the_first_that_a_guest_can_run_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let (beside, state) = (root.path().join("bin"), root.path().join("state"));
        fs::create_dir_all(&beside).unwrap();
        fs::create_dir_all(&state).unwrap();
        let find = |named: Option<PathBuf>| Runtimes::among(named, Some(&beside), &state).find();
        let none = find(None).unwrap_err().to_string();
        assert!(none.contains("is missing; build it") && none.contains(state.to_str().unwrap()), "{none}");
        // The runtime of this host, as a build leaves it beside this program.
        fs::write(beside.join(NAME), program(machine(), 3)).unwrap();
        let dynamic = find(None).unwrap_err().to_string();
        assert!(
            dynamic.contains("vm-agent-runtime is not static") && dynamic.contains("cargo xtask dist"),
            "{dynamic}"
        );
        fs::write(state.join(NAME), program(machine(), 1)).unwrap();
        assert_eq!(find(None).unwrap(), state.join(NAME));
        let full = beside.join(format!("{NAME}-{}-linux", std::env::consts::ARCH));
        fs::write(&full, program(machine(), 1)).unwrap();
        assert_eq!(find(None).unwrap(), full);
        let named = root.path().join("named");
        assert_eq!(find(Some(named.clone())).unwrap(), full);
        fs::write(&named, program(machine(), 1)).unwrap();
        assert_eq!(find(Some(named.clone())).unwrap(), named);
    }

    #[test]
    fn what_a_guest_can_not_run_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (bytes, words) in [
            (b"#!/bin/sh\n".to_vec(), "no program for 64-bit Linux"),
            (program(40, 1), "another architecture"),
            (program(machine(), 3), "not static"),
        ] {
            fs::write(file.path(), bytes).unwrap();
            assert!(check(file.path()).unwrap_err().to_string().contains(words));
        }
    }
}
