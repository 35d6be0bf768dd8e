use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One of the texts that make a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceFile {
    /// Its name as the user wrote it, for sentences.
    pub name: String,
    /// Where it is, absolute; nothing for a text that came from nowhere on the disk. Relative paths in
    /// it begin in its folder.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// What it says.
    pub text: String,
}
