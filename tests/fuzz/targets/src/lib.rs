//! What is done with bytes from elsewhere, and what must hold whatever they are.
//!
//! Each target takes any bytes and panics when something does not hold. `cargo fuzz` looks for such bytes
//! (`tests/fuzz`); what it found, and what people thought of, lies in `tests/fuzz/corpus` and goes through
//! its target with every run of the tests.

mod api;
mod archives;
mod fleet;
mod hub;
mod text;
mod wire;

/// One of the doors through which bytes come in.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of its corpus, and of its program.
    pub name: &'static str,
    /// What is done with the bytes. Panics when something does not hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "frames", run: wire::frames },
    Target { name: "from_hub", run: wire::from_hub },
    Target { name: "handshake", run: hub::handshake },
    Target { name: "session", run: hub::session },
    Target { name: "fleet", run: fleet::files },
    Target { name: "selector", run: text::selector },
    Target { name: "units", run: text::units },
    Target { name: "api", run: api::bodies },
    Target { name: "archives", run: archives::archive },
];

/// Runs the target of that name.
///
/// # Panics
/// When something does not hold, and when there is no such target.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("there is a target of that name");
    (target.run)(bytes);
}
