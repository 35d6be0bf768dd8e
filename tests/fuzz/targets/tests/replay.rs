//! Every file of the corpus goes through its target.
#![expect(clippy::unwrap_used, reason = "this is a test")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use vm_agent_fuzz_targets::TARGETS;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it lies in tests/fuzz").to_owned()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_file_of_the_corpus_goes_through_its_target() {
    let mut broken = Vec::new();
    for target in TARGETS {
        let folder = fuzz().join("corpus").join(target.name);
        let mut files: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(!files.is_empty(), "there is nothing in {}", folder.display());
        files.sort();
        for file in files {
            let bytes = fs::read(&file).unwrap();
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes))).is_err() {
                broken.push(file);
            }
        }
    }
    assert!(broken.is_empty(), "the panics above come of {broken:?}");
}

#[test]
fn each_target_has_a_program_and_a_corpus_and_there_are_no_others() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names(&fuzz().join("corpus")), targets);
    assert_eq!(names(&fuzz().join("fuzz_targets")), targets);
    for name in targets {
        let program = fs::read_to_string(fuzz().join("fuzz_targets").join(format!("{name}.rs"))).unwrap();
        assert!(program.contains(&format!("run(\"{name}\"")), "the program of {name} runs another target");
    }
}

/// A simple source of numbers, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end.max(1) as u64).unwrap()
    }
}

/// One of the files with a few bytes changed, left out, doubled, or taken from another one.
fn mutation(files: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = files[numbers.below(files.len())].clone();
    for _ in 0..=numbers.below(6) {
        let (at, len) = (numbers.below(bytes.len() + 1), numbers.below(64));
        let end = (at + len).min(bytes.len());
        match numbers.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << numbers.below(8),
            1 if at < bytes.len() => bytes[at] = [0, b'/', b'.', b'0', b'7', 0xff][numbers.below(6)],
            2 => drop(bytes.drain(at..end)),
            3 => bytes.extend_from_within(at..end),
            _ => {
                let other = &files[numbers.below(files.len())];
                let from = numbers.below(other.len());
                let piece = other[from..(from + len).min(other.len())].to_vec();
                let _: Vec<u8> = bytes.splice(at..end, piece).collect();
            }
        }
    }
    bytes
}

/// Runs for as many seconds as `FUZZ_SECONDS` says, on the targets that `FUZZ_TARGETS` names, or on all.
#[test]
#[ignore = "it takes as long as it is told to; where there is no cargo-fuzz it looks for new bytes that break something"]
fn mutations_of_the_corpus_go_through_their_targets() {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let named = std::env::var("FUZZ_TARGETS").unwrap_or_default();
    let targets: Vec<_> =
        TARGETS.iter().filter(|it| named.is_empty() || named.split(',').any(|name| name == it.name)).collect();
    let each = std::time::Duration::from_secs(seconds) / u32::try_from(targets.len()).unwrap();
    for target in targets {
        let folder = fuzz().join("corpus").join(target.name);
        let files: Vec<Vec<u8>> =
            fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        let seed = std::env::var("FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        let (mut numbers, began, mut count) = (Numbers(seed), std::time::Instant::now(), 0_u64);
        while began.elapsed() < each {
            let bytes = mutation(&files, &mut numbers);
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes))).is_err() {
                let found = std::env::temp_dir().join(format!("found-{}-{seed}-{count}", target.name));
                fs::write(&found, &bytes).unwrap();
                panic!("the panic above comes of {}; keep it in the corpus", found.display());
            }
            count += 1;
        }
        println!("{}: {count} inputs", target.name);
    }
}

#[test]
fn every_message_of_the_protocols_document_goes_through_its_target() {
    let document = include_str!("../../../../schemas/PROTOCOL.md");
    let blocks = |mark: &str| -> Vec<String> {
        let fence = format!("```json {mark}\n");
        let blocks = document.split(&fence).skip(1);
        blocks.map(|rest| rest.split("```").next().unwrap().replace('\n', "")).collect()
    };
    let (hub, runtime) = (blocks("from-hub"), blocks("from-runtime"));
    assert!(hub.len() > 20 && runtime.len() > 10);
    hub.iter().for_each(|block| vm_agent_fuzz_targets::run("from_hub", block.as_bytes()));
    // Each alone, and all of them one after the other.
    runtime.iter().for_each(|block| vm_agent_fuzz_targets::run("session", block.as_bytes()));
    vm_agent_fuzz_targets::run("session", runtime.join("\n").as_bytes());
}
