use std::path::PathBuf;

use clap::Args;

/// Run the runtime of a folder: what an instance of driver `local` is
#[derive(Debug, Args)]
pub(crate) struct RuntimeArgs {
    /// The folder, with its seed
    pub(crate) folder: PathBuf,
}
