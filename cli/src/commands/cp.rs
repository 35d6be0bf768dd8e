use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use vm_agent_schemas::names::AgentName;

use crate::Context;
use crate::archive::{destination, folder_of, size_of};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::transfer::{download, upload};

/// What the folder is called in which something lies until all of it has come.
const STAGING: &str = ".vm-agent-cp-";

/// Copy a file or a folder into an agent, or out of it
///
/// One side is NAME:PATH, with a path that is absolute or below the agent's work folder. A folder that is
/// there takes in what is copied to it; anything else is replaced as a whole, once all has come. Links below a
/// folder stay links.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vm-agent cp ./src builder:\n  vm-agent cp builder:/var/log/build.log .")]
pub(crate) struct CpArgs {
    /// What to copy
    #[arg(value_name = "SRC", value_parser = place)]
    from: Place,
    /// Where to
    #[arg(value_name = "DST", value_parser = place)]
    to: Place,
}

/// A path, here or in an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    In(AgentName, String),
}

/// What stands before a colon is an agent, unless it has a slash in it.
fn place(text: &str) -> Result<Place, String> {
    match text.split_once(':') {
        Some((name, path)) if !name.contains('/') => {
            let name = name.parse().map_err(|error| format!("{error}; a file of that name is ./{text}"))?;
            // Nothing after the colon is the work folder.
            Ok(Place::In(name, if path.is_empty() { "." } else { path }.to_owned()))
        }
        _ if text.is_empty() => Err("write a path, or NAME:PATH".to_owned()),
        _ => Ok(Place::Here(text.into())),
    }
}

pub(crate) async fn run(context: &mut Context, args: CpArgs) -> CommandResult {
    let began = Instant::now();
    let bytes = match (args.from, args.to) {
        (Place::Here(from), Place::In(agent, to)) => into_agent(context, &from, &agent, to).await?,
        (Place::In(agent, from), Place::Here(to)) => out_of_agent(context, &agent, from, &to).await?,
        (Place::Here(from), Place::Here(to)) => {
            let sentence = "neither side is in an agent; write one as NAME:PATH";
            return Err(CommandError::new(Exit::USAGE, sentence).hint(format!(
                "here it is: cp -r {} {}",
                from.display(),
                to.display()
            )));
        }
        (Place::In(a, from), Place::In(b, to)) => {
            let name = last_part(&from).unwrap_or("it");
            return Err(CommandError::new(Exit::USAGE, "both sides are in agents")
                .hint(format!("copy it by way of here: vm-agent cp {a}:{from} . && vm-agent cp ./{name} {b}:{to}")));
        }
    };
    let size = render::bytes(bytes);
    context.ui.status(format_args!("copied {size} in {:.1} s", began.elapsed().as_secs_f64()))?;
    Ok(Exit::SUCCESS)
}

async fn into_agent(context: &mut Context, from: &Path, agent: &AgentName, to: String) -> Result<u64, CommandError> {
    let unreadable = |error: io::Error| CommandError::io(format_args!("`{}` can't be read", from.display()), &error);
    from.metadata().map_err(unreadable)?;
    let name = match from.file_name() {
        Some(name) => name.to_owned(),
        // Such as `.`, whose name is not in it.
        None => from.canonicalize().map_err(unreadable)?.file_name().unwrap_or("root".as_ref()).to_owned(),
    };
    let name = name.to_str().ok_or_else(|| {
        CommandError::new(Exit::USAGE, format!("the name of `{}` is not UTF-8; rename it first", from.display()))
    })?;
    let client = context.place.client().await?;
    upload(&mut context.ui, &client, agent, (from, name), to).await?;
    Ok(size_of(from))
}

async fn out_of_agent(context: &mut Context, agent: &AgentName, from: String, to: &Path) -> Result<u64, CommandError> {
    let client = context.place.client().await?;
    // Beside its place, so that it gets there by a rename.
    let beside = if to.is_dir() { to } else { folder_of(to) };
    let staging = tempfile::Builder::new()
        .prefix(STAGING)
        .tempdir_in(beside)
        .map_err(|error| CommandError::io(format_args!("`{}` can't be written to", beside.display()), &error))?;
    let entry = download(&mut context.ui, &client, agent, from, staging.path()).await?;
    let bytes = size_of(&entry);
    put(&entry, to)?;
    Ok(bytes)
}

/// Puts what has come where it belongs.
fn put(entry: &Path, to: &Path) -> Result<(), CommandError> {
    let name = entry.file_name().unwrap_or_default().to_string_lossy();
    let place = destination(to, &name);
    fs::rename(entry, &place).map_err(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
            CommandError::new(Exit::CONFLICT, format!("`{}` is there already, and is not replaced", place.display()))
                .hint("remove it first, or name another place")
        }
        _ => CommandError::io(format_args!("`{}` can't be put in place", place.display()), &error),
    })
}

fn last_part(path: &str) -> Option<&str> {
    Path::new(path).file_name()?.to_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::name;

    #[test]
    fn a_colon_tells_an_agent_from_a_path() {
        let within = |agent: &str, path: &str| Ok(Place::In(name(agent), path.to_owned()));
        assert_eq!(place("web:/etc/hosts"), within("web", "/etc/hosts"));
        assert_eq!(place("web:"), within("web", "."));
        assert_eq!(place("web:a:b"), within("web", "a:b"));
        for here in ["./web:file", "dir/a:b", "plain", "."] {
            assert_eq!(place(here), Ok(Place::Here(here.into())));
        }
        assert!(place("Web:file").unwrap_err().ends_with("a file of that name is ./Web:file"));
        assert!(place("").is_err());
    }

    #[test]
    fn what_has_come_replaces_a_file_and_no_folder_with_something_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let come = |text: &str| {
            fs::write(at("log"), text).unwrap();
            at("log")
        };
        put(&come("1"), &at("new")).unwrap();
        put(&come("2"), &at("new")).unwrap();
        assert_eq!(fs::read_to_string(at("new")).unwrap(), "2");
        fs::create_dir_all(at("folder/log/full")).unwrap();
        assert_eq!(put(&come("3"), &at("folder")).unwrap_err().exit, Exit::CONFLICT);
        fs::remove_dir_all(at("folder/log")).unwrap();
        put(&come("4"), &at("folder")).unwrap();
        assert_eq!(fs::read_to_string(at("folder/log")).unwrap(), "4");
    }
}
