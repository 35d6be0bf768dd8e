//! Where the controller is: its state folder on this machine, or an address somewhere else.

use std::io;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use vm_agent_schemas::api::ControllerFile;
use vm_agent_schemas::ids::Secret;

use crate::client::{Address, Client};
use crate::exit::{CommandError, Exit};

/// The file in a state folder that says where its controller listens.
const CONTROLLER_FILE: &str = "controller.json";
/// The file in a state folder whose exclusive lock a controller holds as long as it lives.
const LOCK_FILE: &str = "lock";
/// The program's own folder among those of others.
const FOLDER: &str = "vm-agent";
/// The variable that holds the token for a controller elsewhere.
pub(crate) const TOKEN_VARIABLE: &str = "VM_AGENT_TOKEN";

/// Where to look for the controller.
#[derive(Debug)]
pub(crate) struct Place {
    state_dir: PathBuf,
    remote: Option<Remote>,
}

#[derive(Debug)]
struct Remote {
    url: String,
    token_file: Option<PathBuf>,
}

/// A controller on this machine.
pub(crate) struct Local {
    pub(crate) file: ControllerFile,
    pub(crate) client: Client,
}

impl Place {
    pub(crate) fn new(
        state_dir: Option<PathBuf>,
        server: Option<String>,
        token_file: Option<PathBuf>,
    ) -> Result<Self, CommandError> {
        let state_dir = match state_dir {
            Some(dir) => dir,
            None => usual_state_dir()?,
        };
        let state_dir = std::path::absolute(&state_dir)
            .map_err(|error| CommandError::io(format_args!("`{}` is no folder", state_dir.display()), &error))?;
        Ok(Self { state_dir, remote: server.map(|url| Remote { url, token_file }) })
    }

    /// The state folder, for what can only be done on the controller's own machine.
    pub(crate) fn here(&self, command: &str) -> Result<&Path, CommandError> {
        match self.remote {
            None => Ok(&self.state_dir),
            Some(_) => Err(CommandError::new(
                Exit::USAGE,
                format!("`{command}` works on the controller's own machine, not through --server"),
            )),
        }
    }

    /// A client of the controller.
    pub(crate) async fn client(&self) -> Result<Client, CommandError> {
        self.running().await?.ok_or_else(|| {
            CommandError::new(Exit::UNREACHABLE, format!("no controller runs on {}", self.state_dir.display()))
                .hint("start one with `vm-agent up`")
        })
    }

    /// A client of the controller; nothing when none runs on the state folder.
    pub(crate) async fn running(&self) -> Result<Option<Client>, CommandError> {
        match &self.remote {
            Some(remote) => remote.client().map(Some),
            None => Ok(find(&self.state_dir).await?.map(|local| local.client)),
        }
    }

    /// The flags that lead another run of this program to the same controller. A token is not among them.
    pub(crate) fn flags(&self) -> Result<Vec<String>, CommandError> {
        let text = |path: &Path| {
            let odd = || CommandError::new(Exit::USAGE, format!("`{}` can't be written as text", path.display()));
            path.to_str().map(str::to_owned).ok_or_else(odd)
        };
        let Some(Remote { url, token_file }) = &self.remote else {
            return Ok(vec!["--state-dir".to_owned(), text(&self.state_dir)?]);
        };
        let mut flags = vec!["--server".to_owned(), url.clone()];
        if let Some(file) = token_file {
            let file = std::path::absolute(file)
                .map_err(|error| CommandError::io(format_args!("`{}` is no file", file.display()), &error))?;
            flags.extend(["--token-file".to_owned(), text(&file)?]);
        }
        Ok(flags)
    }

    /// A folder for what this program keeps for itself: the state folder, or the person's own when the controller
    /// is on another machine.
    pub(crate) fn own_folder(&self) -> Result<PathBuf, CommandError> {
        match self.remote {
            None => Ok(self.state_dir.clone()),
            Some(_) => Ok(strategy()?.data_dir().join(FOLDER)),
        }
    }

    /// Whether the controller is on another machine.
    pub(crate) fn is_remote(&self) -> bool {
        self.remote.is_some()
    }
}

impl Remote {
    fn client(&self) -> Result<Client, CommandError> {
        let address = Address::parse(&self.url)?;
        let token = match &self.token_file {
            Some(path) => std::fs::read_to_string(path).map_err(|error| {
                CommandError::io(format_args!("the token file `{}` can't be read", path.display()), &error)
            })?,
            None => std::env::var(TOKEN_VARIABLE).map_err(|_| {
                CommandError::new(Exit::DENIED, "a controller at --server needs a token")
                    .hint(format!("put it into the variable {TOKEN_VARIABLE}, or name its file with --token-file"))
            })?,
        };
        Ok(Client::new(address, Some(Secret::from_text(token.trim()))))
    }
}

/// The controller that runs on a state folder. A file that a crashed controller left behind is told
/// from a live one by nobody answering on its socket.
pub(crate) async fn find(state_dir: &Path) -> Result<Option<Local>, CommandError> {
    let path = state_dir.join(CONTROLLER_FILE);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CommandError::io(format_args!("`{}` can't be read", path.display()), &error)),
    };
    let file: ControllerFile = match serde_json::from_slice(&text) {
        Ok(file) => file,
        // Left behind by a controller of another version, so it is in nobody's way.
        Err(_) if !is_held(state_dir)? => return Ok(None),
        Err(error) => {
            let sentence = format!("`{}` is not understood: {error}", path.display());
            return Err(CommandError::new(Exit::FAILURE, sentence)
                .hint("its controller may be of another version; use the program that started it"));
        }
    };
    let client = Client::new(Address::Unix(file.addresses.socket.clone()), None);
    match client.knock().await {
        Ok(()) => Ok(Some(Local { file, client })),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(None),
        Err(error) => {
            let what = format_args!("the controller's socket `{}` can't be used", file.addresses.socket.display());
            Err(CommandError::io(what, &error))
        }
    }
}

/// Whether the last controller on the state folder ended in order: then it took its file with it.
pub(crate) fn ended_in_order(state_dir: &Path) -> bool {
    !state_dir.join(CONTROLLER_FILE).exists()
}

/// Whether a controller still holds the state folder.
pub(crate) fn is_held(state_dir: &Path) -> Result<bool, CommandError> {
    let path = state_dir.join(LOCK_FILE);
    let held = |error: io::Error| CommandError::io(format_args!("`{}` can't be looked at", path.display()), &error);
    let file = match std::fs::File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(held(error)),
    };
    match file.try_lock() {
        // Closing the file lets go of the lock again.
        Ok(()) => Ok(false),
        Err(std::fs::TryLockError::WouldBlock) => Ok(true),
        Err(std::fs::TryLockError::Error(error)) => Err(held(error)),
    }
}

fn usual_state_dir() -> Result<PathBuf, CommandError> {
    let strategy = strategy()?;
    Ok(strategy.state_dir().unwrap_or_else(|| strategy.data_dir()).join(FOLDER))
}

/// Where the platform keeps what.
fn strategy() -> Result<impl BaseStrategy, CommandError> {
    etcetera::base_strategy::choose_native_strategy().map_err(|error| {
        CommandError::new(Exit::USAGE, format!("there is no usual place for the state folder: {error}"))
            .hint("name one with --state-dir")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_of_another_version_is_in_the_way_only_while_its_controller_lives() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONTROLLER_FILE), r#"{"apiVersion": 9}"#).unwrap();
        assert!(find(dir.path()).await.unwrap().is_none());
        let lock = std::fs::File::create(dir.path().join(LOCK_FILE)).unwrap();
        lock.lock().unwrap();
        assert!(find(dir.path()).await.err().unwrap().to_string().contains("is not understood"));
    }

    #[test]
    fn another_run_is_led_to_the_same_controller() {
        let flags = |server: Option<&str>, token: Option<&str>| {
            let place = Place::new(Some("/s".into()), server.map(str::to_owned), token.map(PathBuf::from));
            place.unwrap().flags().unwrap()
        };
        assert_eq!(flags(None, None), ["--state-dir", "/s"]);
        let server = "http://127.0.0.1:9091";
        assert_eq!(flags(Some(server), None), ["--server", server]);
        assert_eq!(flags(Some(server), Some("/t")), ["--server", server, "--token-file", "/t"]);
    }

    #[test]
    fn a_folder_is_held_as_long_as_its_lock_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_held(dir.path()).unwrap());
        let lock = std::fs::File::create(dir.path().join(LOCK_FILE)).unwrap();
        assert!(!is_held(dir.path()).unwrap());
        lock.lock().unwrap();
        assert!(is_held(dir.path()).unwrap());
        drop(lock);
        assert!(!is_held(dir.path()).unwrap());
    }
}
