use std::ffi::OsString;

use clap::Args;

/// Be the runtime: that of a folder, as an instance of driver `local` is, or `message` for programs in it
#[derive(Debug, Args)]
pub(crate) struct RuntimeArgs {
    /// The folder with its seed; or what `vm-agent-runtime` takes in its stead
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "FOLDER")]
    pub(crate) arguments: Vec<OsString>,
}
