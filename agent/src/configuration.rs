//! The configuration in force: environment and secrets, files, services. It lives in memory only, and as long
//! as the runtime does, whatever becomes of the connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_util::task::TaskTracker;
use vm_agent_schemas::ids::{Digest, Nonce};
use vm_agent_schemas::wire::{Configuration, Configured};

use crate::files::Files;
use crate::folder::{Folder, FolderError};
use crate::log_forward::LogSender;
use crate::messages;
use crate::process::Surroundings;
use crate::sentence;
use crate::services::{Pace, Services};

/// What the runtime works with besides its seed.
#[derive(Debug)]
pub(crate) struct InForce {
    /// The controller's mark; nothing as long as there is no configuration.
    digest: Option<Digest>,
    /// What processes that are started now find around them.
    pub(crate) surroundings: Arc<Surroundings>,
    files: Files,
    /// The programs that are kept running.
    pub(crate) services: Services,
    /// What of the configuration could not be done, in sentences.
    problems: Vec<String>,
}

impl InForce {
    /// No configuration. What earlier starts left of services is ended; files stay until there is one.
    pub(crate) fn nothing(folder: &Folder, nonce: &Nonce, log: LogSender) -> Result<Self, FolderError> {
        let (env, secrets) = (BTreeMap::new(), BTreeMap::new());
        let socket = messages::socket(folder.path());
        let surroundings = Surroundings { work: folder.work(), nonce: nonce.clone(), socket, env, secrets };
        Ok(Self {
            digest: None,
            surroundings: Arc::new(surroundings),
            files: Files::load(folder)?,
            services: Services::new(nonce, log, Pace::default()),
            problems: Vec::new(),
        })
    }

    /// Puts a configuration into force: what runs as tasks and streams keeps its environment.
    pub(crate) fn apply(&mut self, configuration: Configuration, tracker: &TaskTracker) {
        let Configuration { digest, env, labels: _, secrets, files, services } = configuration;
        let Surroundings { work, nonce, socket, .. } = self.surroundings.as_ref().clone();
        self.surroundings = Arc::new(Surroundings { work, nonce, socket, env, secrets });
        // Files first: a service may need them.
        self.problems = self.files.apply(&files);
        self.services.configure(services, &self.surroundings, tracker);
        self.digest = Some(digest);
    }

    /// Puts files right. Answers whether the problems are others than before.
    pub(crate) fn mend(&mut self) -> bool {
        let problems = self.files.mend();
        let news = problems != self.problems;
        self.problems = problems;
        news
    }

    /// What the hub is told.
    pub(crate) fn told(&self) -> Configured {
        Configured { digest: self.digest.clone(), problems: sentence::problems(&self.problems) }
    }
}
