//! Paths of the host in a fleet file begin in the folder of the file that they stand in.

use std::path::{Component, Path, PathBuf};

use super::diagnostic::Finding;
use super::file::{AgentEntry, FleetFile};
use super::keys::SecretSource;
use super::webhook::Webhook;

/// Makes every host path absolute, as it is written: what a link leads to is not looked up. `folder` is
/// that of the file; a text that came from nowhere on the disk has none, and may not hold a relative one.
pub(super) fn absolutise(file: &mut FleetFile, folder: Option<&Path>, findings: &mut Vec<Finding>) {
    let key = |parts: &[&str]| parts.iter().map(|&part| part.to_owned()).collect::<Vec<_>>();
    let defaults = file.defaults.iter_mut().map(|entry| (key(&["defaults"]), entry));
    let profiles = file.profiles.iter_mut().map(|(name, entry)| (key(&["profiles", name.as_str()]), entry));
    let agents = file.agents.iter_mut().map(|(name, entry)| (key(&["agents", name.as_str()]), entry));
    let of_entry = |(at, entry): (Vec<String>, _)| {
        host_paths(entry).into_iter().map(move |(path, host)| (at.iter().cloned().chain(path).collect(), host))
    };
    let of_entries = defaults.chain(profiles).chain(agents).flat_map(of_entry);
    let all: Vec<(Vec<String>, HostPath<'_>)> =
        of_entries.chain(file.webhooks.iter_mut().enumerate().filter_map(of_webhook)).collect();
    for (at, host) in all {
        if let Err(message) = host.absolutise(folder) {
            findings.push(Finding::at(&at, message.to_owned()).advised("write an absolute path".to_owned()));
        }
    }
}

/// A path of the host, as a key has it.
enum HostPath<'a> {
    Path(&'a mut PathBuf),
    /// One among other things that the key may hold.
    Text(&'a mut String),
}

impl HostPath<'_> {
    fn absolutise(self, folder: Option<&Path>) -> Result<(), &'static str> {
        match self {
            Self::Path(path) => *path = from(folder, path)?,
            Self::Text(text) => {
                let path = from(folder, Path::new(text))?.into_os_string();
                *text = path.into_string().map_err(|_| "the folder of this file has a name that is no text")?;
            }
        }
        Ok(())
    }
}

/// The host path of a webhook's secret, with where it stands in the file.
fn of_webhook((index, webhook): (usize, &mut Webhook)) -> Option<(Vec<String>, HostPath<'_>)> {
    let path = webhook.secret.as_mut().and_then(of_secret)?;
    Some((vec!["webhooks".into(), index.to_string(), "secret".into(), "file".into()], path))
}

const fn of_secret(source: &mut SecretSource) -> Option<HostPath<'_>> {
    match source {
        SecretSource::File(path) => Some(HostPath::Path(path)),
        SecretSource::Env(_) | SecretSource::Command(_) => None,
    }
}

/// An image that is a file beside this one. What else may be an image, only drivers know.
fn of_image(image: &mut String) -> Option<HostPath<'_>> {
    ["./", "../", "~/"].iter().any(|start| image.starts_with(start)).then_some(HostPath::Text(image))
}

/// The host paths of an entry, each with where it stands in it.
fn host_paths(entry: &mut AgentEntry) -> Vec<(Vec<String>, HostPath<'_>)> {
    let image = entry.image.as_mut().and_then(of_image).map(|path| (vec!["image".into()], path));
    let mounts = entry
        .mounts
        .iter_mut()
        .map(|(name, mount)| (vec!["mounts".into(), name.clone()], HostPath::Path(&mut mount.source)));
    let secrets = entry
        .secrets
        .iter_mut()
        .filter_map(|(name, source)| Some((vec!["secrets".into(), name.clone(), "file".into()], of_secret(source)?)));
    image.into_iter().chain(mounts).chain(secrets).collect()
}

/// An absolute path without `.` and `..`, or why there is none.
fn from(folder: Option<&Path>, path: &Path) -> Result<PathBuf, &'static str> {
    let first = path.components().next().ok_or("there is no path here")?;
    if first.as_os_str().to_string_lossy().starts_with('~') {
        return Err("`~` stands for a person's home only in a shell");
    }
    let homeless = "a relative path begins in the folder of its file, and this text has none";
    let whole = if path.is_absolute() { path.to_owned() } else { folder.ok_or(homeless)?.join(path) };
    let mut plain = PathBuf::new();
    for part in whole.components() {
        match part {
            Component::CurDir => {}
            // Above the root there is the root.
            Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_begins_in_the_folder_of_its_file_and_loses_its_dots() {
        let of = |path: &str| from(Some(Path::new("/home/me/fleet")), Path::new(path)).unwrap();
        assert_eq!(of("src"), Path::new("/home/me/fleet/src"));
        assert_eq!(of("./../data/."), Path::new("/home/me/data"));
        assert_eq!(of("/srv/../etc"), Path::new("/etc"));
        assert_eq!(of("../../../../../x"), Path::new("/x"));
        assert_eq!(from(None, Path::new("/srv")).unwrap(), Path::new("/srv"));
        for bad in ["", "~/src"] {
            assert!(from(Some(Path::new("/home")), Path::new(bad)).is_err(), "{bad}");
        }
        assert!(from(None, Path::new("src")).is_err());
    }
}
