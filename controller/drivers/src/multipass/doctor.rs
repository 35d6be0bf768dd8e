//! How it goes with Multipass on this host, for people.

use super::answer::{Version, Versions};
use super::cli::Program;
use super::{Fault, SHORT_LIMIT, sight};

/// The oldest version that this driver works with.
const OLDEST: Version = Version::new(1, 13, 0);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The versions of the command and of its daemon, where the command answers.
    pub versions: Option<Versions>,
    /// What is wrong, with what to do about it; nothing where all is well.
    pub trouble: Option<String>,
    /// What it lacks that later versions have.
    pub lacks: Vec<&'static str>,
}

/// Looks at it: whether it is there, of which version, and whether this user may speak to its daemon.
pub async fn health(program: &Program) -> Health {
    let versions = match sight::look_up(program).await {
        Ok(versions) => versions,
        Err(fault) => return Health { versions: None, trouble: Some(fault.told()), lacks: Vec::new() },
    };
    let common = versions.common();
    let trouble = match program.call(&["list", "--no-ipv4", "--format", "json"], None, SHORT_LIMIT).await {
        Ok(said) if said.code == Some(0) => None,
        Ok(said) => Some(Fault::of(&said).told()),
        Err(error) => Some(Fault::from(error).told()),
    };
    let old = (common < OLDEST).then(|| format!("version {common} is too old; install {OLDEST} or a later one"));
    Health { versions: Some(versions), trouble: trouble.or(old), lacks: common.lacks() }
}
