//! The images of this machine.

use std::collections::BTreeMap;

use jiff::Timestamp;
use vm_agent_daemon::machines::ImageInfo;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::units::ByteSize;

use super::ago;
use crate::table::Table;

/// Images, oldest first, with who uses them.
pub(crate) fn list(images: &[ImageInfo], users: &BTreeMap<Digest, Vec<InstanceName>>, now: Timestamp) -> String {
    let mut table = Table::new(&["DIGEST", "AGE", "SIZE", "DISK", "USED BY", "SOURCE"]);
    for image in images {
        let users = users.get(&image.digest).map_or(&[][..], Vec::as_slice);
        let users: Vec<&str> = users.iter().map(InstanceName::as_str).collect();
        table.row(vec![
            image.digest.short().into(),
            ago(now, image.made_at).into(),
            rounded(image.bytes).into(),
            ByteSize::from_bytes(image.disk_size).into(),
            users.join(",").into(),
            (&image.source).into(),
        ]);
    }
    table.render()
}

/// A size to the mebibyte: what files take on a disk is no round number.
fn rounded(bytes: u64) -> ByteSize {
    ByteSize::from_bytes(bytes.div_ceil(ByteSize::MIB) * ByteSize::MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_with_who_uses_them() {
        let made_at: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let image = |source: &str| ImageInfo {
            digest: Digest::of(source.as_bytes()),
            source: source.to_owned(),
            made_at,
            disk_size: 1 << 30,
            bytes: 190_000_000,
        };
        let images = [image("debian"), image("https://example.org/disk.img")];
        let users = [(images[0].digest.clone(), vec!["web".parse().unwrap(), "db".parse().unwrap()])].into();
        let now = made_at + std::time::Duration::from_secs(3600);
        let shown = anstream::adapter::strip_str(&list(&images, &users, now)).to_string();
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert!(lines[1].contains(&"web,db") && lines[1].contains(&"182M") && lines[1].contains(&"1G"), "{shown}");
        assert!(lines[2].contains(&"-") && lines[2].ends_with(&["https://example.org/disk.img"]), "{shown}");
    }
}
