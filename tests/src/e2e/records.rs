//! What a controller that has ended left: its database, and the folders of its instances.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use vm_agent_schemas::layout::SEED_FILE;
use vm_agent_schemas::observe::Operation;
use vm_agent_schemas::wire::Seed;
use vm_agent_store::{Store, claims, operations};

/// What is written down and what is there.
#[derive(Debug)]
pub struct Records {
    /// The nonce of each claim, by the instance's name.
    pub claims: BTreeMap<String, String>,
    /// The nonce in each instance's folder, by the instance's name.
    pub folders: BTreeMap<String, String>,
    /// The operations that have not come to their end.
    pub operations: Vec<Operation>,
    /// What else lies beside the folders: instances half made or half deleted.
    pub leftovers: BTreeSet<String>,
}

impl Records {
    /// Reads a state folder that no controller holds.
    #[must_use]
    pub fn read(state_dir: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (claims, operations) = runtime.block_on(async {
            let store = Store::open(&state_dir.join("state.db")).expect("a database that a crash left opens");
            let claims = store.read(claims::all).await.expect("claims read");
            let operations = store.read(operations::open_operations).await.expect("operations read");
            store.close().await;
            (claims, operations)
        });
        let claims =
            claims.into_iter().map(|claim| (claim.instance.to_string(), claim.nonce.as_str().to_owned())).collect();
        let (folders, leftovers) = folders(&state_dir.join("instances"));
        Self { claims, folders, operations, leftovers }
    }
}

fn folders(root: &Path) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let mut folders = BTreeMap::new();
    let mut leftovers = BTreeSet::new();
    for entry in std::fs::read_dir(root).expect("the instances' folder reads") {
        let entry = entry.expect("an entry reads");
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            leftovers.insert(name);
            continue;
        }
        let seed = std::fs::read(entry.path().join(SEED_FILE)).expect("an instance has a seed");
        let seed: Seed = serde_json::from_slice(&seed).expect("a seed reads");
        folders.insert(name, seed.nonce.as_str().to_owned());
    }
    (folders, leftovers)
}
