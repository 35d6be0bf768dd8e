//! Building an image by a recipe: a script and its files, run in a folder of their own.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use vm_agent_schemas::ids::Digest;

use super::{OnProgress, Progress};
use crate::launched::inherited;
use crate::tool::{ToolError, last_words};

/// A file of a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeFile {
    /// Its path, below the recipe's folder.
    pub path: &'static str,
    /// What is in it.
    pub content: &'static str,
}

/// How an image is built. The script is run in the folder of its files with one argument: the folder into
/// which it is to put `disk.qcow2` and, if QEMU is to load them itself, `kernel` and `initrd`. What it says on
/// stderr is told as progress, and as the reason where it fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The script, by its path.
    pub script: &'static str,
    /// All files, the script among them.
    pub files: Vec<RecipeFile>,
}

impl Recipe {
    /// What its images are kept under: any change of a file makes another image.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let files: Vec<_> = self.files.iter().map(|file| (file.path, file.content)).collect();
        Digest::of_json(&(self.script, files, std::env::consts::ARCH))
    }

    /// The recipe of the same image with cloud-init in it, which makes a machine of what the seed disk says.
    #[must_use]
    pub fn with_cloud_init(&self) -> Self {
        let content = include_str!("../../../../provisioning/image/cloud-init.cfg");
        let file = RecipeFile { path: "cloud-init.cfg", content };
        Self { files: self.files.iter().cloned().chain([file]).collect(), ..self.clone() }
    }

    /// Builds the image into a folder. Given up, the script and all that it started end.
    pub(super) async fn build(&self, into: &Path, on: &OnProgress<'_>) -> Result<(), ToolError> {
        let failed = |source| ToolError::Spawn { program: self.script.into(), source };
        let work = tempfile::Builder::new().prefix("recipe.").tempdir_in(into).map_err(failed)?;
        let (files, temporary) = (work.path().join("files"), work.path().join("tmp"));
        self.unpack(&files).and_then(|()| fs::create_dir(&temporary)).map_err(failed)?;
        let mut command = Command::new("sh");
        command.arg(self.script).arg(into).current_dir(files);
        command.env_clear().envs(inherited()).env("LC_ALL", "C").kill_on_drop(true);
        if rustix::process::geteuid().is_root() {
            // So that nothing of a build that was killed stays anywhere else. An ordinary user's tree belongs to
            // that user's subordinate ids, which may not enter here.
            command.env("TMPDIR", temporary);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let group = Group::of(&child);
        let said = child.stderr.take().map(BufReader::new);
        let mut last = Vec::new();
        if let Some(said) = said {
            let mut lines = said.split(b'\n');
            while let Some(line) = lines.next_segment().await.map_err(failed)? {
                let text = String::from_utf8_lossy(&line);
                tracing::debug!(line = %text, "a recipe says");
                on(Progress::Builds(&text));
                last.extend_from_slice(&line);
                last.push(b'\n');
                let surplus = last.len().saturating_sub(LAST);
                last.drain(..surplus);
            }
        }
        let status = child.wait().await.map_err(failed)?;
        group.leave();
        if !status.success() {
            return Err(ToolError::Failed { program: self.script.into(), said: last_words(&last) });
        }
        work.close().map_err(failed)
    }

    fn unpack(&self, folder: &Path) -> io::Result<()> {
        for file in &self.files {
            let path = folder.join(file.path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path)?;
            new.write_all(file.content.as_bytes())?;
        }
        Ok(())
    }
}

/// How much of what a script says is kept for the reason, in bytes.
const LAST: usize = 4096;

/// The script and what it started. Dropped, all of it is killed.
struct Group(Option<rustix::process::Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw))
    }

    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}
