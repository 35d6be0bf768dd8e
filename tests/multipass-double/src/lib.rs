//! A double of Multipass for tests: a program that answers to the name `multipass`, keeps its state in a folder,
//! prints byte for byte what Multipass 1.16.3 prints, takes as long as it is told, and misbehaves on request.
//!
//! # The program
//!
//! It keeps everything in the folder that `MULTIPASS_DOUBLE_DIR` names:
//!
//! | file | is |
//! |---|---|
//! | `knobs.json` | what goes wrong and how long things take ([`Knobs`]); read at each call |
//! | `calls.jsonl` | each call: arguments, process, begin, end, exit code ([`Call`]) |
//! | `state.json` | what the daemon remembers ([`state::State`]) |
//! | `instances/NAME/root` | the disk of an instance |
//! | `image` | what all machines have in common |
//!
//! There is no daemon. A call that needs one runs in a process of its own, which goes on when the client is killed
//! (only a download does not), and which holds a lock while the real daemon's one thread would be busy.
//!
//! # The machines
//!
//! An instance that runs is a real process in namespaces of its own, with the folder of the instance as its root: it
//! sees this host's programs, but none of its files. User-data is followed (`bootcmd`, `write_files`, `users`,
//! `hostname`, `packages` as names, `runcmd`), `systemctl` starts units as processes, `sudo` lets through whoever may,
//! and `cloud-init status` tells how it went. The network is this host's: a machine reaches its loopback. Switched off,
//! nothing of it is left. This needs Linux, util-linux, and root or namespaces for users; without root all users of a
//! machine are one.
//!
//! # In tests
//!
//! [`Double`] makes a state folder, sets the knobs, tells the calls, does to machines and to the daemon what happens to
//! them, and ends all that is left when it is dropped.
#![cfg(target_os = "linux")]

mod args;
mod calls;
mod client;
mod commands;
mod daemon;
mod failure;
mod guest;
mod handle;
mod home;
mod images;
mod instance;
pub mod knobs;
mod print;
mod sizes;
pub mod state;
mod vault;

pub use calls::Call;
pub use client::main;
pub use handle::{Busy, Double};
pub use home::{DIR_VARIABLE, Home};
pub use knobs::Knobs;
