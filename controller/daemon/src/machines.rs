//! The drivers of this build, and what lies below the state folder for them.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_agent_drivers::Driver;
pub use vm_agent_drivers::images::{ImageError, ImageInfo, Images, Progress, debian, ignore_progress};
use vm_agent_drivers::local::{Local, RuntimeProgram};
pub use vm_agent_drivers::multipass;
use vm_agent_drivers::multipass::{Kit, Limits, Multipass};
use vm_agent_drivers::provisioning::Provisioning;
pub use vm_agent_drivers::qemu::{Acceleration, Host, Missing, Programs};
use vm_agent_drivers::qemu::{Qemu, SeedDisk};
pub use vm_agent_drivers::runtimes::{MissingRuntime, Runtimes};

/// The drivers of this build that this host has the programs for.
pub(crate) fn drivers(state_dir: &Path, program: PathBuf) -> Vec<Arc<dyn Driver>> {
    let mut drivers: Vec<Arc<dyn Driver>> = Vec::new();
    if let Some(multipass) = multipass::Program::find() {
        let (records, runtimes) = (state_dir.join("multipass"), Runtimes::new(&program, state_dir));
        let multipass = Multipass::new(records, multipass, kit(runtimes)).with_limits(Limits::of_host());
        drivers.push(Arc::new(multipass));
    }
    match qemu(state_dir, &program) {
        Ok(qemu) => drivers.push(Arc::new(qemu)),
        Err(missing) => tracing::info!("{missing}"),
    }
    let runtime = RuntimeProgram { path: program, args: vec![OsString::from("runtime")] };
    drivers.push(Arc::new(Local::new(state_dir.join("instances"), runtime)));
    drivers
}

fn qemu(state_dir: &Path, program: &Path) -> Result<Qemu, Missing> {
    let programs = Programs::find()?;
    let images = images(state_dir)?;
    Ok(Qemu::new(machines(state_dir), programs, images, seed_disk(Runtimes::new(program, state_dir))))
}

/// The images of a state folder.
///
/// # Errors
/// When this host lacks a program for them.
pub fn images(state_dir: &Path) -> Result<Images, Missing> {
    Ok(Images::new(state_dir.join("images"), machines(state_dir), Programs::find()?.img, debian()))
}

fn machines(state_dir: &Path) -> PathBuf {
    state_dir.join("machines")
}

/// The same for machines that it is installed in by programs.
fn kit(runtimes: Runtimes) -> Kit {
    Arc::new(move |provision| {
        let runtime = runtimes.find().map_err(io::Error::other)?;
        Provisioning::new(runtime).archive(provision)
    })
}

/// Brings the runtime that is found at that moment into machines.
fn seed_disk(runtimes: Runtimes) -> SeedDisk {
    Arc::new(move |instance, incarnation, provision, path| {
        let runtime = runtimes.find().map_err(io::Error::other)?;
        Provisioning::new(runtime).write(instance, incarnation, provision, path)
    })
}
