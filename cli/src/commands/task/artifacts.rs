//! The files that a task was asked for.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use clap::Args;
use ring::digest::{Context as Hash, SHA256};
use vm_agent_schemas::api::API_VERSION;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::task::{Artifact, Task};

use super::records::unknown;
use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::transfer::download;
use crate::ui::{Format, OutputArgs};
use crate::{ids, render};

/// List the files that a task made, or copy them here
///
/// What is copied is what the task made, or nothing: each is checked against the checksum of that time.
#[derive(Debug, Args)]
pub(super) struct ArtifactsArgs {
    /// The task: its id, or as much of its beginning or end as tells it apart
    #[arg(value_name = "ID")]
    id: String,
    /// Copy them into this folder, which is made where it is missing
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(context: &mut Context, args: ArtifactsArgs) -> CommandResult {
    let client = context.place.client().await?;
    let id = ids::task(&client, &args.id).await?;
    let task = client.get::<Task>(&format!("/tasks/{id}")).await.map_err(unknown)?.content;
    let artifacts = task.report.as_ref().map_or(&[][..], |report| &report.artifacts);
    let format = args.output.output;
    let Some(to) = args.to else {
        if artifacts.is_empty() && matches!(format, Format::Table | Format::Wide) {
            context
                .ui
                .hint("it left no artifacts; `vm-agent task NAME --artifact PATTERN -- COMMAND` asks for some")?;
            return Ok(Exit::SUCCESS);
        }
        let document = serde_json::json!({"apiVersion": API_VERSION, "kind": "ArtifactList", "items": artifacts});
        context.ui.document(format, &document, || render::artifact_table(artifacts))?;
        return Ok(Exit::SUCCESS);
    };
    let agent = task
        .agent
        .as_ref()
        .filter(|_| !artifacts.is_empty())
        .ok_or_else(|| CommandError::new(Exit::NOT_FOUND, format!("task {id} left no artifacts")))?;
    for (artifact, place) in artifacts.iter().zip(places(artifacts)) {
        let place = to.join(place);
        let folder = crate::archive::folder_of(&place).to_owned();
        let unwritable =
            |error: io::Error| CommandError::io(format_args!("`{}` can't be written to", folder.display()), &error);
        fs::create_dir_all(&folder).map_err(unwritable)?;
        let staging = tempfile::Builder::new().prefix(".vm-agent-").tempdir_in(&folder).map_err(unwritable)?;
        let came = download(&mut context.ui, &client, agent, artifact.path.clone(), staging.path()).await?;
        check(artifact, &came)?;
        fs::rename(&came, &place).map_err(unwritable)?;
        context.ui.print(place.display())?;
    }
    Ok(Exit::SUCCESS)
}

/// That what has come is what the task made.
fn check(artifact: &Artifact, came: &Path) -> Result<(), CommandError> {
    let found =
        digest(came).map_err(|error| CommandError::io(format_args!("{} can't be read", came.display()), &error))?;
    if found == artifact.sha256 {
        return Ok(());
    }
    let sentence = format!("{} is no longer what the task made: its checksum is another", artifact.path);
    Err(CommandError::new(Exit::CONFLICT, sentence).hint("run the task again, or copy the file as it is: vm-agent cp"))
}

fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hash = Hash::new(&SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::of_sha256(&hash.finish())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Where below a folder each goes: as they lay to each other in the agent.
fn places(artifacts: &[Artifact]) -> Vec<PathBuf> {
    let parts = |path: &str| -> Vec<String> {
        let named = |part: Component<'_>| match part {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        };
        Path::new(path).components().filter_map(named).collect()
    };
    let paths: Vec<Vec<String>> = artifacts.iter().map(|artifact| parts(&artifact.path)).collect();
    let folders = paths.iter().map(|path| &path[..path.len().saturating_sub(1)]);
    let common =
        folders.reduce(|a, b| &a[..a.iter().zip(b).take_while(|(a, b)| a == b).count()]).map_or(0, <[String]>::len);
    paths.iter().map(|path| path[common..].iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::units::ByteSize;

    fn artifact(path: &str, content: &[u8]) -> Artifact {
        Artifact { path: path.into(), size: ByteSize::from_bytes(content.len() as u64), sha256: Digest::of(content) }
    }

    #[test]
    fn artifacts_lie_as_they_lay_and_never_outside() {
        let places = |paths: &[&str]| -> Vec<String> {
            let artifacts: Vec<Artifact> = paths.iter().map(|path| artifact(path, b"")).collect();
            super::places(&artifacts).iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(places(&["/work/out/app"]), ["app"]);
        assert_eq!(
            places(&["/work/out/app", "/work/out/doc/a.html", "/work/out/doc/b.html"]),
            ["app", "doc/a.html", "doc/b.html"]
        );
        assert_eq!(places(&["/a/x", "/b/x"]), ["a/x", "b/x"]);
        assert_eq!(places(&["/a/../../etc/x"]), ["x"]);
    }

    #[test]
    fn what_is_no_longer_the_same_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let came = dir.path().join("app");
        fs::write(&came, "made").unwrap();
        check(&artifact("/out/app", b"made"), &came).unwrap();
        assert_eq!(check(&artifact("/out/app", b"other"), &came).unwrap_err().exit, Exit::CONFLICT);
    }
}
