//! `clone`.

use super::launch::plant;
use super::{Context, existing};
use crate::args::Arguments;
use crate::failure::{Done, Failure};
use crate::instance;
use crate::state::{Phase, is_name};

/// `clone`: of what is stopped. The new one has no snapshots, and an instance id of its own.
pub(super) fn clone(context: &mut Context, arguments: &Arguments) -> Done {
    let source = match arguments.positional.as_slice() {
        [] => return Err(Failure::usage("Please provide the name of the source instance.")),
        [source] => source,
        _ => return Err(Failure::usage("Too many arguments.")),
    };
    context.screen.spin(&format!("Cloning {source}"));
    let name = copy(context, source, arguments.value("name")).map_err(|failure| context.stilled(failure))?;
    context.screen.still();
    context.screen.out(format!("Cloned from {source} to {name}.\n"));
    context.screen.still();
    Ok(())
}

fn copy(context: &mut Context, source: &str, wanted: Option<&str>) -> Result<String, Failure> {
    let no = |text: String| Failure::daemon("clone", text);
    let mut serial = context.daemon("clone")?;
    if !context.knobs.has("clone") {
        return Err(no("The clone feature is not implemented on this backend.".to_owned()));
    }
    if let Some(wanted) = wanted.filter(|wanted| !is_name(wanted)) {
        return Err(no(format!("Invalid destination instance name: {wanted}")));
    }
    let found = existing("clone", &mut serial.state, source)?;
    if found.phase != Phase::Stopped {
        return Err(no("Multipass can only clone stopped instances.".to_owned()));
    }
    let mut made = found.clone();
    let number = found.clones + 1;
    let name = wanted.map_or_else(|| format!("{source}-clone{number}"), str::to_owned);
    if serial.state.instances.contains_key(&name) {
        return Err(no(format!("instance \"{name}\" already exists")));
    }
    if serial.state.preparing.contains_key(&name) {
        return Err(no(format!("instance \"{name}\" is being prepared")));
    }
    if made.image.uncloneable {
        let path = format!("/var/snap/multipass/common/data/multipassd/vault/instances/{name}/image.qcow2");
        return Err(no(format!(
            "Cannot list snapshots from the image: qemu-img failed (Process returned exit code: 1) with output:\nqemu-img: \
             Could not open '{path}': Could not open '{path}': No such file or directory\n"
        )));
    }
    drop(std::fs::remove_dir_all(context.home.instance(&name)));
    instance::copy(&context.home.disk(source), &context.home.disk(&name));
    plant(&context.home, &name, &name, None);
    made.ipv4 = serial.state.next_address();
    made.uuid = uuid::Uuid::new_v4().to_string();
    (made.snapshots, made.snapshots_taken, made.parent, made.clones) = (Vec::new(), 0, None, 0);
    if let Some(found) = serial.state.instances.get_mut(source) {
        found.clones = number;
    }
    serial.state.vault.insert(&name, &made.image.hash);
    serial.state.instances.insert(name.clone(), made);
    serial.save();
    Ok(name)
}
