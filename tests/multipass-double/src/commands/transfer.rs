//! `transfer`: the client talks to the machine's SFTP server as the user `ubuntu`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::exec::{enter, pump};
use super::{Context, lacking};
use crate::args::Arguments;
use crate::daemon;
use crate::failure::{Done, Failure};
use crate::guest::image::PROGRAM;
use crate::instance;
use crate::print::log_line;

const COMMAND: &str = "transfer";
/// The mode of a file that is made from stdin.
const STREAMED: u32 = 0o664;

/// Files on their way.
struct Transfer<'a> {
    context: &'a mut Context,
    /// The machine.
    name: String,
    recursive: bool,
    parents: bool,
    /// A file of several did not make it.
    failed: bool,
}

/// An end of a transfer: a path here, or in an instance.
fn end(text: &str) -> (Option<&str>, &str) {
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() => (Some(name), path),
        _ => (None, text),
    }
}

/// `transfer`.
pub(super) fn transfer(context: &mut Context, arguments: &Arguments) -> Done {
    let [sources @ .., target] = arguments.positional.as_slice() else {
        return Err(Failure::usage("Not enough arguments given"));
    };
    if sources.is_empty() {
        return Err(Failure::usage("Not enough arguments given"));
    }
    let streams = sources.iter().filter(|source| *source == "-").count() + usize::from(target == "-");
    if streams > 1 {
        return Err(Failure::usage("Only one '-' allowed"));
    }
    if streams == 1 && sources.len() > 1 {
        return Err(Failure::usage("Only two arguments allowed when using '-'"));
    }
    let from: Vec<(Option<&str>, &str)> = sources.iter().map(|source| end(source)).collect();
    let (into, path) = end(target);
    if into.is_some() && from.iter().any(|(name, _)| name.is_some()) {
        return Err(Failure::usage("Cannot specify an instance name for both source and destination"));
    }
    if streams == 1 && (target == "-" && from[0].0.is_none()) {
        return Err(Failure::usage("Source must be from inside an instance"));
    }
    if streams == 1 && target != "-" && into.is_none() {
        return Err(Failure::usage("Target must be inside an instance"));
    }
    let Some(name) = into.or_else(|| from.iter().find_map(|(name, _)| *name)) else {
        return Err(Failure::usage("An instance name is needed for either source or destination"));
    };
    check(context, name)?;
    enter(context, COMMAND, name, false)?;
    let (recursive, parents) = (arguments.has("recursive"), arguments.has("parents"));
    let mut transfer = Transfer { context, name: name.to_owned(), recursive, parents, failed: false };
    match (into, sources) {
        (Some(_), [dash]) if dash == "-" => transfer.stream_in(path),
        (Some(_), _) => transfer.push(sources, path),
        (None, _) if target == "-" => transfer.stream_out(from[0].1),
        (None, _) => transfer.pull(&from.iter().map(|(_, path)| *path).collect::<Vec<_>>(), Path::new(path)),
    }?;
    if transfer.failed { Err(Failure { code: 2, text: String::new() }) } else { Ok(()) }
}

fn check(context: &mut Context, name: &str) -> Done {
    let serial = daemon::enter(&context.home, &context.knobs, COMMAND)?;
    match lacking(&serial.state, name) {
        Some(text) => Err(Failure::errors(COMMAND, &[text])),
        None => Ok(()),
    }
}

impl Transfer<'_> {
    /// The other end, to be told what to do.
    fn server(&self, words: &[&str]) -> io::Result<Command> {
        let inside = instance::inside(&self.context.home, &self.name);
        let mut command = inside.ok_or_else(|| io::Error::other("the machine is off"))?;
        command.arg(format!("/{PROGRAM}")).arg("double-files").args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }

    fn ask(&self, words: &[&str]) -> Result<String, String> {
        let done = self.server(words).and_then(|mut server| server.output()).map_err(|error| error.to_string())?;
        match done.status.success() {
            true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
        }
    }

    /// One file did not make it; others may.
    fn complain(&mut self, text: &str) {
        self.failed = true;
        self.context.screen.err(log_line("sftp", text));
    }

    fn put(&self, mut from: impl Read, mode: u32, path: &str) -> Result<(), String> {
        let mut server = self.server(&["put", &format!("{mode:o}"), path]).map_err(|error| error.to_string())?;
        let mut server = server.stdin(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
        let mut line = server.stdin.take().expect("it was asked for");
        // A server that refuses hangs up; what it says is more than that.
        drop(pump(&mut from, &mut line));
        drop(line);
        let done = server.wait_with_output().map_err(|error| error.to_string())?;
        match done.status.success() {
            true => Ok(()),
            false => Err(format!("cannot open remote file {path}: {}", String::from_utf8_lossy(&done.stderr))),
        }
    }

    fn get(&self, path: &str, mut to: impl Write) -> Result<(), String> {
        let server = self.server(&["get", path]).and_then(|mut server| server.spawn());
        let mut server = server.map_err(|error| error.to_string())?;
        let out = server.stdout.take().expect("it was asked for");
        drop(pump(out, &mut to));
        let done = server.wait_with_output().map_err(|error| error.to_string())?;
        match done.status.success() {
            true => Ok(()),
            false => Err(format!("cannot open remote file {path}: {}", String::from_utf8_lossy(&done.stderr))),
        }
    }

    fn stream_in(&mut self, path: &str) -> Done {
        let path = if path.is_empty() { "." } else { path };
        if self.parents {
            drop(self.ask(&["parents", path]));
        }
        let done = self.put(io::stdin().lock(), STREAMED, path);
        done.map_err(|text| Failure { code: 2, text: format!("{text}\n") })
    }

    fn stream_out(&mut self, path: &str) -> Done {
        let done = self.get(path, io::stdout().lock());
        done.map_err(|text| Failure { code: 2, text: format!("{text}\n") })
    }

    fn push(&mut self, sources: &[String], target: &str) -> Done {
        let target = if target.is_empty() { "." } else { target };
        if self.parents {
            drop(self.ask(&["parents", target]));
        }
        let kind = self.ask(&["kind", target]).unwrap_or_default();
        let is_folder = kind == "folder";
        if sources.len() > 1 && !is_folder {
            return Err(Failure { code: 2, text: format!("Target \"{target}\" is not a directory\n") });
        }
        if kind == "nothing" {
            self.complain("remote target does not exist");
            return Ok(());
        }
        for source in sources {
            let path = Path::new(source);
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let to = if is_folder { format!("{}/{name}", target.trim_end_matches('/')) } else { target.to_owned() };
            match fs::metadata(path) {
                Err(_) => self.complain(&format!("cannot access {source}: No such file or directory")),
                Ok(found) if found.is_dir() && !self.recursive => {
                    self.complain(&format!("omitting local directory {source}: recursive mode not specified"));
                }
                Ok(found) if found.is_dir() => self.push_folder(path, &to),
                Ok(_) => self.push_file(path, &to),
            }
        }
        Ok(())
    }

    fn push_folder(&mut self, folder: &Path, to: &str) {
        drop(self.ask(&["mkdir", to]));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let to = format!("{to}/{}", entry.file_name().to_string_lossy());
            match entry.path().is_dir() {
                true => self.push_folder(&entry.path(), &to),
                false => self.push_file(&entry.path(), &to),
            }
        }
    }

    fn push_file(&mut self, path: &Path, to: &str) {
        let done = File::open(path).and_then(|file| Ok((file.metadata()?.permissions().mode() & 0o7777, file)));
        let to = to.strip_prefix("./").unwrap_or(to);
        let done = match done {
            Ok((mode, file)) => self.put(file, mode, to),
            Err(error) => Err(format!("cannot open local file {}: {error}", path.display())),
        };
        if let Err(text) = done {
            self.complain(&text);
        }
    }

    fn pull(&mut self, sources: &[&str], target: &Path) -> Done {
        let target = if target == Path::new("") { Path::new(".") } else { target };
        if self.parents {
            drop(target.parent().map(fs::create_dir_all));
        }
        if sources.len() > 1 && !target.is_dir() {
            let text = format!("Target \"{}\" is not a directory\n", target.display());
            return Err(Failure { code: 2, text });
        }
        let parent = target.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        if !target.exists() && !parent.is_dir() {
            self.complain("local target does not exist");
            return Ok(());
        }
        for source in sources {
            let name = Path::new(source).file_name().unwrap_or_default();
            let to = if target.is_dir() { target.join(name) } else { target.to_owned() };
            match self.ask(&["kind", source]).unwrap_or_default().as_str() {
                "folder" if !self.recursive => {
                    self.complain(&format!("omitting remote directory {source}: recursive mode not specified"));
                }
                "folder" => self.pull_folder(source, &if target.is_dir() { target.join(name) } else { to }),
                kind => self.pull_file(source, &to, kind),
            }
        }
        Ok(())
    }

    fn pull_folder(&mut self, folder: &str, to: &PathBuf) {
        drop(fs::create_dir_all(to));
        for line in self.ask(&["list", folder]).unwrap_or_default().lines() {
            let (kind, name) = line.split_at(1);
            let (from, to) = (format!("{folder}/{name}"), to.join(name));
            match kind {
                "d" => drop(fs::create_dir_all(to)),
                _ => self.pull_file(&from, &to, &self.ask(&["kind", &from]).unwrap_or_default()),
            }
        }
    }

    /// The local file is made first, and stays when the rest fails.
    fn pull_file(&mut self, from: &str, to: &Path, kind: &str) {
        let mode = kind.strip_prefix("file ").and_then(|mode| u32::from_str_radix(mode, 8).ok());
        let opened = OpenOptions::new().create(true).write(true).truncate(true).mode(0o644).open(to);
        let done = match opened {
            Ok(file) => self.get(from, file),
            Err(error) => Err(format!("cannot open local file {}: {error}", to.display())),
        };
        match (done, mode) {
            (Ok(()), Some(mode)) => drop(fs::set_permissions(to, Permissions::from_mode(mode))),
            (Ok(()), None) => {}
            (Err(text), _) => self.complain(&text),
        }
    }
}
