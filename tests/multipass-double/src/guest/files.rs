//! The other end of a file transfer: what an SFTP server would do, as the user who runs it.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;

use super::{complain, say};

/// `put MODE PATH`, `get PATH`, `kind PATH`, `parents PATH`, `mkdir PATH`, `list PATH`.
pub(super) fn main(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match *words.as_slice() {
        ["put", mode, path] => put(u32::from_str_radix(mode, 8).unwrap_or(0o664), Path::new(path)),
        ["get", path] => {
            fs::File::open(path).and_then(|mut file| io::copy(&mut file, &mut io::stdout().lock()).map(drop))
        }
        ["kind", path] => return say(&kind(Path::new(path))),
        ["parents", path] => fs::create_dir_all(Path::new(path).parent().unwrap_or(Path::new("."))),
        ["mkdir", path] => fs::create_dir_all(path),
        ["list", path] => return list(Path::new(path)),
        _ => return ExitCode::FAILURE,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(match error.kind() {
                io::ErrorKind::PermissionDenied => "SFTP server: Permission denied",
                io::ErrorKind::NotFound => "SFTP server: No such file",
                _ => "SFTP server: Failure",
            });
            ExitCode::FAILURE
        }
    }
}

fn put(mode: u32, path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(mode).open(path)?;
    io::copy(&mut io::stdin().lock(), &mut file)?;
    file.flush()?;
    // The mask of the user is not in the way.
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// `folder`, `file MODE`, `parent` (only the folder that it would be in is there) or `nothing`.
fn kind(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => "folder".to_owned(),
        Ok(found) => format!("file {:o}", found.permissions().mode() & 0o7777),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => "parent".to_owned(),
        Err(_) => {
            let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
            if parent.is_dir() { "parent" } else { "nothing" }.to_owned()
        }
    }
}

/// All that lies below a folder, one a line: `d` or `f`, and the way from there.
fn list(folder: &Path) -> ExitCode {
    fn walk(folder: &Path, below: &str, told: &mut String) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                told.push_str(&format!("d{name}\n"));
                walk(&entry.path(), &format!("{name}/"), told);
            } else {
                told.push_str(&format!("f{name}\n"));
            }
        }
    }
    let mut told = String::new();
    walk(folder, "", &mut told);
    say(&told)
}
