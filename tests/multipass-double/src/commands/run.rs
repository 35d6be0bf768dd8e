//! `start`, `stop`, `restart` and `suspend`.

use jiff::Timestamp;

use super::{Context, either, lacking, names, require, timeout, whom};
use crate::args::Arguments;
use crate::daemon::{self, Serial};
use crate::failure::{Done, Failure};
use crate::instance;
use crate::knobs::Version;
use crate::print::screen::Event;
use crate::state::Phase;

/// `start`: waits for SSH, outside of the daemon's one thread.
pub(super) fn start(context: &mut Context, arguments: &Arguments) -> Done {
    either(arguments)?;
    let limit = timeout(arguments)?;
    if let Some(seconds) = limit {
        context.screen.show(Event::Deadline(seconds, "Timed out waiting for instance to start.\n".to_owned()));
    }
    context.screen.spin(&format!("Starting {}", whom(arguments)));
    let done = start_all(context, arguments, limit);
    done.map_err(|failure| context.stilled(failure))?;
    context.screen.still();
    context.screen.still();
    Ok(())
}

fn start_all(context: &mut Context, arguments: &Arguments, limit: Option<u64>) -> Done {
    let mut serial = context.daemon("start")?;
    let names = names(arguments, &serial.state);
    // They are told in the order of a hash table.
    let lacking: String = names
        .iter()
        .rev()
        .filter_map(|name| match serial.state.instances.get(name) {
            None => Some(format!("Instance '{name}' does not exist.\n")),
            Some(instance) if instance.deleted => Some(format!(
                "Instance '{name}' is deleted. Use 'recover' to recover it or 'purge' to permanently delete it.\n"
            )),
            Some(_) => None,
        })
        .collect();
    if !lacking.is_empty() {
        return Err(Failure::daemon("start", format!("instance(s) missing\n{lacking}")));
    }
    let mut errors = Vec::new();
    let mut started = Vec::new();
    for name in &names {
        let Some(found) = serial.state.instances.get_mut(name) else { continue };
        match found.phase {
            Phase::Running => continue,
            Phase::DelayedShutdown => {
                (found.phase, found.shutdown_at) = (Phase::Running, None);
                continue;
            }
            Phase::Unknown => {
                let text =
                    format!("Instance '{name}' is already running, but in an unknown state.\nTry to stop it first.");
                errors.push(text);
                continue;
            }
            Phase::Stopped => {
                found.phase = Phase::Starting;
                instance::boot(&context.home, &context.knobs, name, found);
            }
            Phase::Suspended => {
                found.phase = Phase::Starting;
                instance::thaw(&context.home, name);
            }
            Phase::Starting | Phase::Restarting => {}
        }
        started.push(name.clone());
    }
    serial.save();
    drop(serial);
    if !started.is_empty() {
        context.phase("start.boot");
    }
    let limit = limit.map_or_else(|| context.knobs.limit("ssh"), std::time::Duration::from_secs);
    for name in &started {
        errors.extend(wait(context, name, limit));
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::errors("start", &errors)) }
}

/// Waits for SSH after a start. Gives what went wrong.
fn wait(context: &Context, name: &str, limit: std::time::Duration) -> Option<String> {
    let up = instance::await_up(&context.home, &context.knobs, name, limit);
    let lives = instance::lives(&context.home, name);
    let mut serial = daemon::hold(&context.home);
    let found = serial.state.instances.get_mut(name)?;
    if matches!(found.phase, Phase::Starting | Phase::Restarting) {
        found.phase = if up { Phase::Running } else { Phase::Unknown };
        serial.save();
    }
    match (up, lives) {
        (true, _) => None,
        (false, true) => Some(format!("{name}: timed out waiting for response")),
        (false, false) => Some(format!("{name}: shutdown called while starting")),
    }
}

/// `stop`: one after the other, and nobody else is heard meanwhile.
pub(super) fn stop(context: &mut Context, arguments: &Arguments) -> Done {
    either(arguments)?;
    let time = arguments.value("time");
    if time.is_some_and(|time| time.is_empty() || !time.bytes().all(|digit| digit.is_ascii_digit())) {
        return Err(Failure::usage("Time must be in digit form"));
    }
    let force = arguments.has("force");
    if force && context.knobs.version < Version::V1_14 {
        return Err(Failure::usage("Unknown option 'force'."));
    }
    if time.is_some() && arguments.has("cancel") {
        return Err(Failure::usage("Cannot set 'time' and 'cancel' options at the same time"));
    }
    if force && (time.is_some() || arguments.has("cancel")) {
        return Err(Failure::usage("Cannot set 'force' along with 'time' or 'cancel' options at the same time"));
    }
    context.screen.spin(&format!("Stopping {}", whom(arguments)));
    let mut serial = context.spinning("stop")?;
    let names = names(arguments, &serial.state);
    require("stop", &serial.state, &names).map_err(|failure| context.stilled(failure))?;
    let minutes = time.and_then(|time| time.parse::<i64>().ok()).filter(|minutes| *minutes > 0);
    for name in &names {
        let done = match (minutes, arguments.has("cancel")) {
            (_, true) => cancel(&mut serial, name),
            (Some(minutes), _) => schedule(&mut serial, name, minutes),
            (None, false) => stop_one(context, &mut serial, name, force),
        };
        serial.save();
        done.map_err(|text| context.stilled(Failure::daemon("stop", text)))?;
    }
    context.screen.still();
    Ok(())
}

fn cancel(serial: &mut Serial, name: &str) -> Result<(), String> {
    if let Some(found) = serial.state.instances.get_mut(name).filter(|found| found.phase == Phase::DelayedShutdown) {
        (found.phase, found.shutdown_at) = (Phase::Running, None);
    }
    Ok(())
}

fn schedule(serial: &mut Serial, name: &str, minutes: i64) -> Result<(), String> {
    if let Some(found) = serial.state.instances.get_mut(name).filter(|found| found.phase.is_running()) {
        found.phase = Phase::DelayedShutdown;
        found.shutdown_at = Some(Timestamp::now().as_millisecond() + minutes * 60_000);
    }
    Ok(())
}

/// Stops one machine, the gentle way or the other.
pub(super) fn stop_one(context: &Context, serial: &mut Serial, name: &str, force: bool) -> Result<(), String> {
    let Some(found) = serial.state.instances.get_mut(name) else { return Ok(()) };
    let hint = |text: String| Err(format!("{text}\nUse --force to power it off."));
    match (force, found.phase) {
        (_, Phase::Stopped) => return Ok(()),
        (true, _) => instance::kill(&context.home, name),
        (false, Phase::Suspended) if context.knobs.version < Version::V1_14 => return Ok(()),
        (false, Phase::Suspended) => return hint(format!("Cannot shut down suspended instance {name}.")),
        (false, Phase::Starting | Phase::Restarting) => {
            return hint(format!("Cannot shut down instance {name} while starting."));
        }
        (false, _) => {
            let limit = context.knobs.limit("shutdown");
            if !instance::press_power_button(&context.home, name, limit) {
                let limit = limit.as_millis();
                return Err(format!(
                    "The QEMU process did not finish within {limit} milliseconds after being shutdown"
                ));
            }
        }
    }
    (found.phase, found.shutdown_at) = (Phase::Stopped, None);
    Ok(())
}

/// `restart`: only of what runs, as it goes by SSH.
pub(super) fn restart(context: &mut Context, arguments: &Arguments) -> Done {
    either(arguments)?;
    let limit = timeout(arguments)?;
    if let Some(seconds) = limit {
        context.screen.show(Event::Deadline(seconds, "Timed out waiting for instance to restart.\n".to_owned()));
    }
    context.screen.spin(&format!("Restarting {}", whom(arguments)));
    restart_all(context, arguments, limit).map_err(|failure| context.stilled(failure))?;
    context.screen.still();
    context.screen.still();
    Ok(())
}

fn restart_all(context: &mut Context, arguments: &Arguments, limit: Option<u64>) -> Done {
    let mut serial = context.daemon("restart")?;
    let names = names(arguments, &serial.state);
    require("restart", &serial.state, &names)?;
    let deaf = names.iter().find(|name| !serial.state.instances[*name].phase.is_running());
    if let Some(name) = deaf {
        let text = match context.knobs.version {
            Version::Main => format!("Instance '{name}' is not running"),
            _ => format!(
                "Instance '{name}' is already running, but in an unknown state.\nTry to stop and start it instead."
            ),
        };
        return Err(Failure::daemon("restart", text));
    }
    for name in &names {
        let before = instance::boots(&context.home, name);
        if let Some(found) = serial.state.instances.get_mut(name) {
            (found.phase, found.shutdown_at) = (Phase::Restarting, None);
        }
        if let Some(mut reboot) = instance::shell(&context.home, name, "sudo reboot") {
            drop(reboot.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).status());
        }
        while instance::lives(&context.home, name) && instance::boots(&context.home, name) == before {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    serial.save();
    drop(serial);
    context.phase("restart.boot");
    let limit = limit.map_or_else(|| context.knobs.limit("ssh"), std::time::Duration::from_secs);
    let errors: Vec<String> = names.iter().filter_map(|name| wait(context, name, limit)).collect();
    if errors.is_empty() { Ok(()) } else { Err(Failure::errors("restart", &errors)) }
}

/// `suspend`: of what does not run, nothing, and without a word.
pub(super) fn suspend(context: &mut Context, arguments: &Arguments) -> Done {
    either(arguments)?;
    context.screen.spin(&format!("Suspending {}", whom(arguments)));
    let mut serial = context.spinning("suspend")?;
    let names = names(arguments, &serial.state);
    if !context.knobs.has("suspend") {
        let text = "The suspend feature is not implemented on this backend.";
        return Err(context.stilled(Failure::daemon("suspend", text)));
    }
    require("suspend", &serial.state, &names).map_err(|failure| context.stilled(failure))?;
    for name in &names {
        debug_assert!(lacking(&serial.state, name).is_none(), "it was just looked at");
        if let Some(found) = serial.state.instances.get_mut(name).filter(|found| found.phase.is_running()) {
            instance::freeze(&context.home, name);
            (found.phase, found.shutdown_at) = (Phase::Suspended, None);
        }
    }
    serial.save();
    context.screen.still();
    Ok(())
}
