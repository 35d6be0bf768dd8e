use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use vm_agent_daemon::machines::{self, ImageError, ImageInfo, Images, Progress};
use vm_agent_schemas::api::API_VERSION;
use vm_agent_schemas::fleet::{ImageReference, InvalidReference};
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::units::ByteSize;

use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render::images;
use crate::ui::{Format, OutputArgs, Ui};

/// List, get, build and delete the images that driver qemu makes machines from
///
/// An image is `debian` (built here in some minutes), the path of a disk (`/…`, `./…`), or a disk elsewhere with its
/// checksum: `https://…#sha256=…`. A machine gets its image by itself; with these it is there beforehand.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List the images that are here, with the machines that use them
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Get an image: download it, going on where an earlier attempt was cut, or take a disk of this host
    Pull {
        /// The image, as the fleet file writes it
        #[arg(value_parser = reference)]
        image: ImageReference,
    },
    /// Build the image `debian`, unless it is here
    Build {
        /// Build it anew; machines that use the present one keep it
        #[arg(long)]
        force: bool,
    },
    /// Delete an image that no machine uses
    Rm {
        /// The beginning of its digest, or what it was made from
        image: String,
    },
}

/// An image as a fleet file in this folder would write it.
fn reference(text: &str) -> Result<ImageReference, InvalidReference> {
    let beside = ["./", "../"].iter().any(|start| text.starts_with(start));
    match std::path::absolute(text) {
        Ok(path) if beside => Ok(ImageReference::File(path)),
        _ => text.parse(),
    }
}

pub(crate) async fn run(context: &mut Context, args: ImageArgs) -> CommandResult {
    let store = store(context.place.here("image")?)?;
    match args.command {
        ImageCommand::Ls { output } => list(&mut context.ui, &store, output.output).await,
        ImageCommand::Pull { image } => {
            let image = obtain(&mut context.ui, &store, &image, false).await?;
            told(&mut context.ui, &image)
        }
        ImageCommand::Build { force } => {
            let image = obtain(&mut context.ui, &store, &ImageReference::Recipe, force).await?;
            told(&mut context.ui, &image)
        }
        ImageCommand::Rm { image } => {
            let gone = store.remove(&image).await.map_err(|error| of_image(&error))?;
            context.ui.status(format_args!("image {} is deleted ({})", gone.digest.short(), gone.source))?;
            Ok(Exit::SUCCESS)
        }
    }
}

fn store(state_dir: &Path) -> Result<Images, CommandError> {
    machines::images(state_dir).map_err(|missing| CommandError::caused(Exit::FAILURE, &missing))
}

fn of_image(error: &ImageError) -> CommandError {
    let exit = match error {
        ImageError::Unknown { .. } | ImageError::Missing { .. } => Exit::NOT_FOUND,
        ImageError::Ambiguous { .. } => Exit::USAGE,
        ImageError::InUse { .. } | ImageError::Busy => Exit::CONFLICT,
        _ => Exit::FAILURE,
    };
    CommandError::caused(exit, error)
}

fn told(ui: &mut Ui, image: &ImageInfo) -> CommandResult {
    ui.print(format_args!("{}", image.digest))?;
    Ok(Exit::SUCCESS)
}

async fn list(ui: &mut Ui, store: &Images, format: Format) -> CommandResult {
    let (images, users) =
        (store.list().await.map_err(|error| of_image(&error))?, store.users().await.map_err(|error| of_image(&error))?);
    if images.is_empty() && matches!(format, Format::Table | Format::Wide) {
        ui.hint("no image is here yet; `vm-agent image build` makes one")?;
    } else {
        ui.document(format, &document(&images, &users), || images::list(&images, &users, Timestamp::now()))?;
    }
    Ok(Exit::SUCCESS)
}

fn document(images: &[ImageInfo], users: &BTreeMap<Digest, Vec<InstanceName>>) -> Value {
    let item = |image: &ImageInfo| {
        let used_by = users.get(&image.digest).map_or(&[][..], Vec::as_slice);
        json!({
            "name": image.digest.short(), "digest": image.digest, "source": image.source, "madeAt": image.made_at,
            "diskSize": image.disk_size, "bytes": image.bytes, "usedBy": used_by,
        })
    };
    let items: Vec<Value> = images.iter().map(item).collect();
    json!({"apiVersion": API_VERSION, "kind": "ImageList", "items": items})
}

/// Has an image, and tells meanwhile how it goes.
async fn obtain(ui: &mut Ui, store: &Images, image: &ImageReference, anew: bool) -> Result<ImageInfo, CommandError> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let on = move |progress: Progress<'_>| {
        let _ = tell.send(Heard::of(&progress));
    };
    let obtained = async { if anew { store.obtain_anew(image, &on).await } else { store.obtain(image, &on).await } };
    let mut obtained = std::pin::pin!(obtained);
    let mut pace = Pace::default();
    loop {
        tokio::select! {
            done = &mut obtained => return done.map(|image| image.info().clone()).map_err(|error| of_image(&error)),
            Some(heard) = told.recv() => pace.tell(ui, &heard)?,
        }
    }
}

/// What was heard of an image, as a person reads it.
struct Heard {
    line: String,
    /// It comes many times a second.
    often: bool,
}

impl Heard {
    fn of(progress: &Progress<'_>) -> Self {
        let said = |line: &str| Self { line: line.to_owned(), often: false };
        match progress {
            Progress::Waits => said("somebody else makes it; waiting"),
            Progress::Checks => said("comparing it with its checksum"),
            Progress::Converts => said("bringing it into form"),
            Progress::Builds(line) => said(line),
            Progress::Downloaded { bytes, of } => {
                let of = of.map(|of| format!(" of {}", ByteSize::from_bytes(of))).unwrap_or_default();
                Self { line: format!("{}{of}", ByteSize::from_bytes(*bytes)), often: true }
            }
        }
    }
}

/// How often what comes often is told.
#[derive(Default)]
struct Pace(Option<Instant>);

impl Pace {
    fn tell(&mut self, ui: &mut Ui, heard: &Heard) -> Result<(), CommandError> {
        // On a terminal a line is drawn over; in a log each stays.
        let pause = Duration::from_millis(if ui.is_live() { 200 } else { 5000 });
        if heard.often && self.0.is_some_and(|last| last.elapsed() < pause) {
            return Ok(());
        }
        self.0 = Some(Instant::now());
        if heard.often && ui.is_live() { ui.draw(std::slice::from_ref(&heard.line)) } else { ui.status(&heard.line) }
    }
}
