//! The seed disk: a FAT volume, because that is what both cloud-init and a bare kernel read.

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use vm_agent_schemas::guest::SEED_DISK_LABEL;

/// Room for what FAT needs besides the files' contents, in bytes.
const MARGIN: usize = 1024 * 1024;
/// The number that volumes are told apart by. It is the same each time, so that equal files make equal disks.
const VOLUME_ID: u32 = 0x766d_6167;

/// A volume with these files in its root, as the bytes of a disk. It bears the label by which guests find it.
///
/// # Errors
/// When a name is none that FAT can have.
pub fn seed_disk(files: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    let size = files.iter().map(|(_, content)| content.len()).sum::<usize>() + MARGIN;
    let mut disk = Cursor::new(vec![0; size.next_multiple_of(MARGIN)]);
    let mut label = [b' '; 11];
    label[..SEED_DISK_LABEL.len()].copy_from_slice(SEED_DISK_LABEL.as_bytes());
    format_volume(&mut disk, FormatVolumeOptions::new().volume_label(label).volume_id(VOLUME_ID))?;
    let volume = FileSystem::new(&mut disk, FsOptions::new())?;
    for (name, content) in files {
        let mut file = volume.root_dir().create_file(name)?;
        file.write_all(content)?;
        file.flush()?;
    }
    volume.unmount()?;
    Ok(disk.into_inner())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn volume(disk: &[u8]) -> FileSystem<Cursor<Vec<u8>>> {
        FileSystem::new(Cursor::new(disk.to_vec()), FsOptions::new()).unwrap()
    }

    /// The files of a disk.
    pub(in crate::provisioning) fn files(disk: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let entry = |entry: io::Result<fatfs::DirEntry<'_, _>>| {
            let entry = entry.unwrap();
            let mut content = Vec::new();
            entry.to_file().read_to_end(&mut content).unwrap();
            (entry.file_name(), content)
        };
        volume(disk).root_dir().iter().map(entry).collect()
    }

    #[test]
    fn what_goes_in_comes_out_under_its_whole_name() {
        let big = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect::<Vec<_>>();
        let disk = seed_disk(&[("user-data", b"#cloud-config\n"), ("vm-agent-runtime", &big), ("empty", b"")]).unwrap();
        assert_eq!(volume(&disk).read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
        let files = files(&disk);
        assert_eq!(files.len(), 3);
        assert_eq!(files["user-data"], b"#cloud-config\n");
        assert!(files["vm-agent-runtime"] == big);
        assert_eq!(files["empty"], b"");
    }

    #[test]
    fn equal_files_make_equal_disks() {
        let make = || seed_disk(&[("meta-data", b"a"), ("user-data", b"b")]).unwrap();
        assert!(make() == make());
    }
}
