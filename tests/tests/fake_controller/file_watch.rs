//! The fleet file on the disk, changed in every way in which files are changed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use vm_agent_daemon::{Config, Controller, Running, source};
use vm_agent_drivers::Driver;
use vm_agent_drivers::fake::Fake;
use vm_agent_schemas::api::{
    Applied, ApplyRequest, ApproveRequest, ChangeRequest, FileState, FileStatus, ProblemCode, RollbackRequest,
};
use vm_agent_schemas::event::{Event, EventKind};
use vm_agent_schemas::fleet::HubSettings;
use vm_agent_schemas::ids::Revision;
use vm_agent_schemas::net::Listen;
use vm_agent_schemas::plan::ConditionStatus;
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{self, PATIENCE, ann, events, until, well};

const ONE: &str = "agents: {web: {}}\n";
const TWO: &str = "agents: {web: {}, db: {}}\n";

/// A controller, and a folder with fleet files beside it.
struct Stage {
    running: Option<Running>,
    fake: Fake,
    _runtimes: Runtimes,
    state: PathBuf,
    files: PathBuf,
    _folder: tempfile::TempDir,
}

impl Stage {
    /// A controller with nothing in force yet.
    async fn set() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(folder.path()).unwrap();
        let (state, files) = (top.join("state"), top.join("files"));
        fs::create_dir(&files).unwrap();
        let fake = in_process::qemu(Span::from_secs(60));
        let _runtimes = Runtimes::of(&fake);
        let running = Some(in_process::start(&state, &[&fake]).await);
        Self { running, fake, _runtimes, state, files, _folder: folder }
    }

    /// A controller with this text in force, from `fleet.yaml` in the folder.
    async fn with(text: &str) -> Self {
        let stage = Self::set().await;
        stage.write("fleet.yaml", text);
        stage.apply(&["fleet.yaml"]).await;
        stage
    }

    fn controller(&self) -> &Controller {
        self.running.as_ref().expect("the controller runs").controller()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// As editors save that take care: whole, or not at all.
    fn replace(&self, name: &str, text: &str) {
        self.write(".new", text);
        fs::rename(self.path(".new"), self.path(name)).unwrap();
    }

    /// What a person's `apply -f …` does.
    async fn apply(&self, names: &[&str]) -> Applied {
        let roots: Vec<PathBuf> = names.iter().map(|name| self.path(name)).collect();
        let source = source::read(&roots).unwrap();
        let request = ApplyRequest { source, plan: None, approve: false, dry_run: false };
        self.controller().apply(request, &ann()).await.unwrap()
    }

    async fn rollback(&self, revision: u64) -> Applied {
        let revision = Revision(revision);
        let request = RollbackRequest { revision, plan: None, approve: false, dry_run: false };
        self.controller().rollback(request, &ann()).await.unwrap()
    }

    async fn stop(&mut self) {
        self.running.take().expect("the controller runs").shut_down().await;
    }

    async fn start(&mut self) {
        self.running = Some(in_process::start(&self.state, &[&self.fake]).await);
    }

    async fn agents(&self) -> Vec<String> {
        self.controller().fleet().await.unwrap().agents.keys().map(ToString::to_string).collect()
    }

    async fn file(&self) -> FileStatus {
        self.controller().status().await.unwrap().file
    }

    async fn condition(&self, kind: &str) -> (ConditionStatus, String) {
        let conditions = self.controller().status().await.unwrap().conditions;
        let condition = conditions.into_iter().find(|condition| condition.kind == kind).unwrap();
        (condition.status, condition.reason)
    }

    /// Waits until the file stands like this.
    async fn stands(&self, state: FileState) -> FileStatus {
        until(&format!("the file is {state:?}"), async || Some(self.file().await).filter(|file| file.state == state))
            .await
    }

    /// How often that was told.
    async fn told(&self, kind: EventKind) -> usize {
        events(self.controller()).await.iter().filter(|event| event.kind == kind).count()
    }
}

/// Waits for the next event of that kind.
async fn next(events: &mut Receiver<Event>, kind: EventKind) -> Event {
    let wait = async {
        loop {
            let event = events.recv().await.expect("the controller goes on telling");
            if event.kind == kind {
                return event;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{kind} should have been told by now"))
}

#[tokio::test]
async fn a_file_that_is_put_in_place_of_the_other_is_applied() {
    let stage = Stage::with(ONE).await;
    let mut events = stage.controller().subscribe();
    stage.replace("fleet.yaml", TWO);
    let applied = next(&mut events, EventKind::FleetApplied).await;
    assert!(applied.message.starts_with("the file changed: "), "{}", applied.message);
    assert!(applied.message.contains("to create"), "{}", applied.message);
    assert_eq!(stage.agents().await, ["db", "web"]);
    let file = stage.file().await;
    assert_eq!((file.state, file.author.as_deref()), (FileState::InForce, Some("file watch")));
    well(stage.controller(), &["db", "web"]).await;
    // What was put in place is watched like what was there before.
    stage.replace("fleet.yaml", "agents: {web: {}, db: {}, new: {}}\n");
    next(&mut events, EventKind::FleetApplied).await;
    assert_eq!(stage.agents().await, ["db", "new", "web"]);
}

#[tokio::test]
async fn a_file_that_is_emptied_and_written_in_pieces_is_applied() {
    let stage = Stage::with(ONE).await;
    let mut events = stage.controller().subscribe();
    let mut file = fs::File::create(stage.path("fleet.yaml")).unwrap();
    for piece in TWO.as_bytes().chunks(7) {
        file.write_all(piece).unwrap();
    }
    drop(file);
    next(&mut events, EventKind::FleetApplied).await;
    assert_eq!(stage.agents().await, ["db", "web"]);
}

#[tokio::test]
async fn a_link_that_leads_elsewhere_is_followed_anew() {
    let stage = Stage::set().await;
    for (folder, text) in [("..one", ONE), ("..two", TWO), ("..three", "agents: {web: {cpus: 2}, db: {}}\n")] {
        fs::create_dir(stage.path(folder)).unwrap();
        stage.write(&format!("{folder}/fleet.yaml"), text);
    }
    let lead = |folder: &str| {
        symlink(folder, stage.path("..tmp")).unwrap();
        fs::rename(stage.path("..tmp"), stage.path("..data")).unwrap();
    };
    lead("..one");
    symlink("..data/fleet.yaml", stage.path("fleet.yaml")).unwrap();
    stage.apply(&["fleet.yaml"]).await;
    let mut events = stage.controller().subscribe();
    for folder in ["..two", "..three", "..one"] {
        lead(folder);
        next(&mut events, EventKind::FleetApplied).await;
    }
    assert_eq!(stage.agents().await, ["web"]);
    stage.write("..one/fleet.yaml", TWO);
    next(&mut events, EventKind::FleetApplied).await;
    assert_eq!(stage.agents().await, ["db", "web"]);
}

#[tokio::test]
async fn a_folder_is_as_many_files_as_it_has() {
    let stage = Stage::set().await;
    stage.write("web.yaml", ONE);
    stage.apply(&["."]).await;
    let mut events = stage.controller().subscribe();
    stage.write("db.yml", "agents: {db: {}}\n");
    next(&mut events, EventKind::FleetApplied).await;
    assert_eq!(stage.agents().await, ["db", "web"]);
    for name in [".web.yaml.swp", "web.yaml~", "notes.txt", ".hidden.yaml"] {
        stage.write(name, "agents: {nobody: {}}\n");
    }
    stage.write("db.yml", "agents: {db: {cpus: 2}}\n");
    next(&mut events, EventKind::FleetApplied).await;
    assert_eq!(stage.agents().await, ["db", "web"]);
    fs::remove_file(stage.path("db.yml")).unwrap();
    next(&mut events, EventKind::FleetApplied).await;
    assert_eq!(stage.agents().await, ["web"]);
    fs::remove_file(stage.path("web.yaml")).unwrap();
    let lost = next(&mut events, EventKind::FileLost).await;
    assert!(lost.message.contains("has no *.yaml file in it"), "{}", lost.message);
    assert_eq!(stage.agents().await, ["web"]);
}

#[tokio::test]
async fn each_of_several_files_is_watched() {
    let stage = Stage::set().await;
    fs::create_dir(stage.path("more")).unwrap();
    stage.write("fleet.yaml", ONE);
    stage.write("more/db.yaml", "agents: {db: {}}\n");
    stage.apply(&["fleet.yaml", "more/db.yaml"]).await;
    let mut events = stage.controller().subscribe();
    stage.replace("more/db.yaml", "agents: {db: {}, cache: {}}\n");
    next(&mut events, EventKind::FleetApplied).await;
    assert_eq!(stage.agents().await, ["cache", "db", "web"]);
    stage.write("fleet.yaml", "agents: {web: {}, db: {}}\n");
    let rejected = next(&mut events, EventKind::FileRejected).await;
    assert!(rejected.message.contains("db"), "{}", rejected.message);
    assert_eq!(stage.agents().await, ["cache", "db", "web"]);
}

#[tokio::test]
async fn a_file_that_is_gone_changes_nothing_and_is_found_when_it_is_back() {
    let stage = Stage::with(TWO).await;
    let mut events = stage.controller().subscribe();
    fs::remove_file(stage.path("fleet.yaml")).unwrap();
    let lost = next(&mut events, EventKind::FileLost).await;
    assert!(lost.message.contains("fleet.yaml can't be read"), "{}", lost.message);
    assert_eq!(stage.stands(FileState::Missing).await.revision, Some(Revision(1)));
    assert_eq!(stage.condition("FileValid").await, (ConditionStatus::False, "Missing".to_owned()));
    assert_eq!(stage.agents().await, ["db", "web"]);
    stage.write("fleet.yaml", TWO);
    next(&mut events, EventKind::FileRestored).await;
    stage.stands(FileState::InForce).await;
    assert_eq!(stage.condition("FileValid").await, (ConditionStatus::True, "InForce".to_owned()));

    // And so with its folder.
    fs::rename(&stage.files, stage.state.join("moved")).unwrap();
    next(&mut events, EventKind::FileLost).await;
    fs::create_dir(&stage.files).unwrap();
    stage.write("fleet.yaml", ONE);
    next(&mut events, EventKind::FleetApplied).await;
    stage.write("fleet.yaml", TWO);
    next(&mut events, EventKind::FleetApplied).await;
    assert_eq!(stage.agents().await, ["db", "web"]);
}

#[tokio::test]
async fn a_typo_is_named_and_changes_nothing_until_it_is_mended() {
    let stage = Stage::with(ONE).await;
    let mut events = stage.controller().subscribe();
    let typo = "agents:\n  web: {cpuss: 2}\n  db: {}\n";
    stage.write("fleet.yaml", typo);
    let rejected = next(&mut events, EventKind::FileRejected).await;
    assert!(rejected.message.contains("fleet.yaml:2:9"), "{}", rejected.message);
    assert!(rejected.message.contains("did you mean `cpus`?"), "{}", rejected.message);
    let file = stage.stands(FileState::Invalid).await;
    assert_eq!(file.diagnostics[0].place.unwrap().line, 2);
    assert_eq!(stage.condition("FileValid").await, (ConditionStatus::False, "Invalid".to_owned()));
    assert!(stage.controller().metrics().await.unwrap().contains("vmagent_file_valid 0"));
    assert_eq!(stage.agents().await, ["web"]);
    // The same again is not told again.
    stage.replace("fleet.yaml", typo);
    stage.write("fleet.yaml", ONE);
    next(&mut events, EventKind::FileRestored).await;
    assert_eq!(stage.told(EventKind::FileRejected).await, 1);
    assert!(stage.controller().metrics().await.unwrap().contains("vmagent_file_valid 1"));
    stage.write("fleet.yaml", typo);
    next(&mut events, EventKind::FileRejected).await;
    stage.write("fleet.yaml", &typo.replace("cpuss", "cpus"));
    next(&mut events, EventKind::FleetApplied).await;
    let file = stage.stands(FileState::InForce).await;
    assert!(file.diagnostics.is_empty());
    assert_eq!(stage.agents().await, ["db", "web"]);
}

#[tokio::test]
async fn an_empty_file_leaves_everything_as_it_is() {
    let stage = Stage::with(TWO).await;
    well(stage.controller(), &["db", "web"]).await;
    let mut events = stage.controller().subscribe();
    for nothing in ["", "# agents: {web: {}}\n", "null\n"] {
        stage.write("fleet.yaml", nothing);
        next(&mut events, EventKind::FileRejected).await;
        stage.write("fleet.yaml", TWO);
        next(&mut events, EventKind::FileRestored).await;
    }
    assert_eq!(stage.told(EventKind::FleetApplied).await, 1);
    well(stage.controller(), &["db", "web"]).await;
}

#[tokio::test]
async fn a_file_that_drops_most_of_the_fleet_touches_no_machine() {
    let all = ["a", "b", "c", "d", "e"];
    let stage = Stage::with("prune: auto\nagents: {a: {}, b: {}, c: {}, d: {}, e: {}}\n").await;
    well(stage.controller(), &all).await;
    let mut events = stage.controller().subscribe();
    stage.write("fleet.yaml", "prune: auto\nagents: {a: {}}\n");
    let applied = next(&mut events, EventKind::FleetApplied).await;
    assert!(applied.message.contains("these wait for an approval"), "{}", applied.message);
    let waiting = stage.controller().approvals().await.unwrap();
    let agents: Vec<_> = waiting.iter().filter_map(|it| it.agent.as_ref().map(ToString::to_string)).collect();
    assert_eq!(agents, ["b", "c", "d", "e"]);
    for approval in &waiting {
        assert!(applied.message.contains(approval.id.short()), "{}", applied.message);
    }
    assert_eq!(stage.fake.list().await.unwrap().len(), all.len());
}

const HELD: &str = "agents: {web: {mounts: {/host: /}}}\n";

#[tokio::test]
async fn a_file_that_reaches_for_the_host_waits_for_a_yes() {
    let stage = Stage::with(ONE).await;
    let mut events = stage.controller().subscribe();
    stage.write("fleet.yaml", HELD);
    let held = next(&mut events, EventKind::FileHeld).await;
    assert!(held.message.contains("agent `web` may read /, mounted at /host"), "{}", held.message);
    stage.stands(FileState::Held).await;
    assert_eq!(stage.condition("FileApplied").await, (ConditionStatus::False, "Held".to_owned()));
    assert_eq!(stage.condition("FileValid").await.0, ConditionStatus::True);
    assert!(stage.controller().fleet().await.unwrap().agents.values().all(|agent| agent.spec.mounts.is_empty()));
    let waiting = stage.controller().approvals().await.unwrap();
    let [approval] = waiting.as_slice() else { panic!("{waiting:?}") };
    assert_eq!(approval.agent, None);
    assert!(approval.what.contains("agent `web` may read /, mounted at /host"), "{}", approval.what);

    let dry_run = ApproveRequest { dry_run: true };
    stage.controller().approve(approval.id.short(), dry_run, &ann()).await.unwrap();
    assert_eq!(stage.file().await.state, FileState::Held);
    stage.controller().approve(approval.id.short(), ApproveRequest::default(), &ann()).await.unwrap();
    assert!(next(&mut events, EventKind::Approved).await.message.contains("ann said yes"));
    next(&mut events, EventKind::FleetApplied).await;
    let file = stage.file().await;
    assert_eq!((file.state, file.author.as_deref()), (FileState::InForce, Some("ann")));
    assert!(stage.controller().fleet().await.unwrap().agents.values().all(|agent| agent.spec.mounts.len() == 1));
    assert!(stage.controller().approvals().await.unwrap().iter().all(|approval| approval.agent.is_some()));
    // What was allowed is not asked for again.
    stage.write("fleet.yaml", &HELD.replace("{web: {", "{web: {cpus: 2, "));
    next(&mut events, EventKind::FleetApplied).await;
    assert_eq!(stage.told(EventKind::FileHeld).await, 1);
}

#[tokio::test]
async fn a_webhooks_secret_waits_for_a_yes_and_its_command_is_not_run_before_that() {
    let stage = Stage::with(ONE).await;
    let mut events = stage.controller().subscribe();
    let ran = stage.path("ran");
    let hook =
        format!("webhooks: [{{url: 'http://127.0.0.1:9/', secret: {{command: [touch, {:?}]}}}}]\n", ran.display());
    stage.write("fleet.yaml", &format!("{ONE}{hook}"));
    let held = next(&mut events, EventKind::FileHeld).await;
    assert!(held.message.contains("signed with the secret from the command"), "{}", held.message);
    stage.stands(FileState::Held).await;
    let source = source::read(&[stage.path("fleet.yaml")]).unwrap();
    let dry_run = ApplyRequest { source, plan: None, approve: false, dry_run: true };
    stage.controller().apply(dry_run, &ann()).await.unwrap();
    assert!(stage.controller().fleet().await.is_ok() && !ran.exists(), "looking runs nothing");

    let approval = stage.controller().approvals().await.unwrap().remove(0);
    stage.controller().approve(approval.id.short(), ApproveRequest::default(), &ann()).await.unwrap();
    next(&mut events, EventKind::FleetApplied).await;
    // Told is what happens from then on.
    let mut paused = false;
    until("there is something to tell", async || {
        paused = !paused;
        stage.controller().pause_fleet(paused, ChangeRequest::default(), &ann()).await.unwrap();
        ran.exists().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_yes_is_void_once_the_file_says_something_else() {
    let stage = Stage::with(ONE).await;
    let mut events = stage.controller().subscribe();
    stage.write("fleet.yaml", HELD);
    next(&mut events, EventKind::FileHeld).await;
    stage.stands(FileState::Held).await;
    let approval = stage.controller().approvals().await.unwrap().remove(0);
    stage.write("fleet.yaml", &HELD.replace("/host", "/elsewhere"));
    // Whether the watcher has seen it already or not.
    let refused =
        stage.controller().approve(approval.id.as_str(), ApproveRequest::default(), &ann()).await.unwrap_err();
    assert!(matches!(refused.code, ProblemCode::Conflict | ProblemCode::NotFound), "{refused:?}");
    next(&mut events, EventKind::FileHeld).await;
    stage.write("fleet.yaml", ONE);
    next(&mut events, EventKind::FileRestored).await;
    stage.stands(FileState::InForce).await;
    assert!(stage.controller().approvals().await.unwrap().is_empty());
    assert_eq!(stage.told(EventKind::FleetApplied).await, 1);
}

#[tokio::test]
async fn a_persons_own_apply_is_a_yes() {
    let stage = Stage::with(ONE).await;
    let mut events = stage.controller().subscribe();
    stage.write("fleet.yaml", HELD);
    next(&mut events, EventKind::FileHeld).await;
    stage.apply(&["fleet.yaml"]).await;
    stage.stands(FileState::InForce).await;
    assert!(stage.controller().approvals().await.unwrap().iter().all(|approval| approval.agent.is_some()));
}

#[tokio::test]
async fn a_file_that_an_agent_can_write_is_applied_by_a_person_only() {
    let stage = Stage::set().await;
    let text = format!("agents: {{web: {{mounts: {{/src: {{source: {:?}, writable: true}}}}}}}}\n", stage.files);
    stage.write("fleet.yaml", &text);
    stage.apply(&["fleet.yaml"]).await;
    let mut events = stage.controller().subscribe();
    stage.write("fleet.yaml", &text.replace("{web: {", "{web: {cpus: 2, "));
    let held = next(&mut events, EventKind::FileHeld).await;
    assert!(held.message.contains("agent `web` can write"), "{}", held.message);
    stage.stands(FileState::Guarded).await;
    assert_eq!(stage.condition("FileApplied").await, (ConditionStatus::False, "Guarded".to_owned()));
    assert!(stage.controller().fleet().await.unwrap().agents.values().all(|agent| agent.spec.cpus == 1));
    stage.apply(&["fleet.yaml"]).await;
    assert!(stage.controller().fleet().await.unwrap().agents.values().all(|agent| agent.spec.cpus == 2));
    let file = until("the file is looked at", async || {
        Some(stage.file().await).filter(|file| file.message.contains("can write"))
    })
    .await;
    assert_eq!(file.state, FileState::InForce);
}

#[tokio::test]
async fn what_changed_while_no_controller_ran_is_applied_at_the_start_of_the_next() {
    let mut stage = Stage::with(ONE).await;
    well(stage.controller(), &["web"]).await;
    stage.stop().await;
    stage.replace("fleet.yaml", TWO);
    stage.start().await;
    // Before anything else is done.
    assert_eq!(stage.agents().await, ["db", "web"]);
    assert_eq!(stage.told(EventKind::FleetApplied).await, 2);
    well(stage.controller(), &["db", "web"]).await;
    stage.stop().await;
    stage.write("fleet.yaml", "agents: [\n");
    stage.start().await;
    stage.stands(FileState::Invalid).await;
    stage.stop().await;
    stage.start().await;
    stage.stands(FileState::Invalid).await;
    assert_eq!(stage.told(EventKind::FileRejected).await, 1);
    assert_eq!(stage.agents().await, ["db", "web"]);
}

#[tokio::test]
async fn what_a_person_went_back_from_stays_away_until_the_file_changes() {
    let mut stage = Stage::with(ONE).await;
    let mut events = stage.controller().subscribe();
    stage.write("fleet.yaml", TWO);
    next(&mut events, EventKind::FleetApplied).await;
    let dry_run = RollbackRequest { revision: Revision(1), plan: None, approve: false, dry_run: true };
    assert!(stage.controller().rollback(dry_run, &ann()).await.unwrap().dry_run);
    assert_eq!(stage.agents().await, ["db", "web"]);

    assert_eq!(stage.rollback(1).await.revision, Some(Revision(3)));
    let back = next(&mut events, EventKind::FleetRolledBack).await;
    assert!(back.message.starts_with("ann went back to revision 1"), "{}", back.message);
    assert_eq!(stage.file().await.state, FileState::RolledBack);
    // The same text in a new file is the same file.
    stage.replace("fleet.yaml", TWO);
    stage.stop().await;
    stage.start().await;
    let file = stage.file().await;
    assert_eq!((file.state, file.revision), (FileState::RolledBack, Some(Revision(3))));
    assert_eq!(stage.condition("FileApplied").await, (ConditionStatus::False, "RolledBack".to_owned()));
    assert_eq!(stage.agents().await, ["web"]);

    let mut events = stage.controller().subscribe();
    stage.write("fleet.yaml", "agents: {web: {}, db: {}, new: {}}\n");
    next(&mut events, EventKind::FleetApplied).await;
    stage.write("fleet.yaml", TWO);
    next(&mut events, EventKind::FleetApplied).await;
    assert_eq!(stage.agents().await, ["db", "web"]);
    assert_eq!(stage.file().await.state, FileState::InForce);
}

#[tokio::test]
async fn a_dry_run_names_the_mount_that_it_would_bring_back() {
    let stage = Stage::set().await;
    fs::create_dir(stage.path("src")).unwrap();
    stage.write("mounted.yaml", "agents: {web: {mounts: {/src: ./src}}}\n");
    let again = format!("agent `web` may read {}, mounted at /src", stage.path("src").display());
    assert_eq!(stage.apply(&["mounted.yaml"]).await.reach, [again.as_str()]);
    stage.write("fleet.yaml", ONE);
    assert_eq!(stage.apply(&["fleet.yaml"]).await.reach, [""; 0]);

    let source = source::read(&[stage.path("mounted.yaml")]).unwrap();
    let request = ApplyRequest { source, plan: None, approve: false, dry_run: true };
    assert_eq!(stage.controller().apply(request, &ann()).await.unwrap().reach, [again.as_str()]);
    let request = RollbackRequest { revision: Revision(1), plan: None, approve: false, dry_run: true };
    assert_eq!(stage.controller().rollback(request, &ann()).await.unwrap().reach, [again.as_str()]);
    // Who goes back is told too, and what is in force already is nothing new.
    assert_eq!(stage.rollback(1).await.reach, [again.as_str()]);
    assert_eq!(stage.rollback(3).await.reach, [""; 0]);
}

#[tokio::test]
async fn every_accepted_file_is_in_the_history() {
    let stage = Stage::with(ONE).await;
    let mut events = stage.controller().subscribe();
    stage.write("fleet.yaml", TWO);
    next(&mut events, EventKind::FleetApplied).await;
    stage.rollback(1).await;
    let history = stage.controller().revisions(10).await.unwrap();
    let shown: Vec<_> = history.iter().map(|it| (it.revision.0, it.author.as_str(), it.current)).collect();
    assert_eq!(shown, [(3, "ann", true), (2, "file watch", false), (1, "ann", false)]);
    assert!(history[0].summary.starts_with("back to revision 1"), "{}", history[0].summary);
    assert!(history.iter().all(|revision| revision.source.is_none()));
    assert_eq!(stage.controller().revisions(1).await.unwrap().len(), 1);
    let second = stage.controller().revision(Revision(2)).await.unwrap();
    assert_eq!(second.source.unwrap().files[0].text, TWO);
    assert_eq!(stage.controller().revision(Revision(9)).await.unwrap_err().code, ProblemCode::NotFound);
    // Going back to what is in force is nothing new.
    assert_eq!(stage.rollback(3).await.revision, Some(Revision(3)));
    let stale = RollbackRequest {
        revision: Revision(2),
        plan: Some(vm_agent_schemas::ids::Digest::of(b"another plan")),
        approve: false,
        dry_run: false,
    };
    assert_eq!(stage.controller().rollback(stale, &ann()).await.unwrap_err().code, ProblemCode::Conflict);
}

#[tokio::test]
async fn a_file_from_another_folder_is_watched_there_and_told_with_both_places() {
    let stage = Stage::with(ONE).await;
    fs::create_dir(stage.path("new")).unwrap();
    stage.write("new/fleet.yaml", TWO);
    let mut events = stage.controller().subscribe();
    stage.apply(&["new/fleet.yaml"]).await;
    let applied = next(&mut events, EventKind::FleetApplied).await;
    let (new, old) = (stage.path("new/fleet.yaml"), stage.path("fleet.yaml"));
    let places = format!("from {}, before from {}", new.display(), old.display());
    assert!(applied.message.contains(&places), "{}", applied.message);
    stage.write("fleet.yaml", "agents: {nobody: {}}\n");
    stage.write("new/fleet.yaml", "agents: {web: {}, db: {}, new: {}}\n");
    next(&mut events, EventKind::FleetApplied).await;
    assert_eq!(stage.agents().await, ["db", "new", "web"]);
}

#[tokio::test]
async fn without_a_watch_a_changed_file_stays_where_it_is() {
    let mut stage = Stage::with(ONE).await;
    stage.stop().await;
    stage.write("fleet.yaml", TWO);
    stage.running = Some(unwatched(&stage.state, &stage.fake).await);
    let file = stage.file().await;
    assert_eq!(file.state, FileState::Unwatched);
    assert!(file.message.contains("switched off"), "{}", file.message);
    assert_eq!(stage.agents().await, ["web"]);
    stage.apply(&["fleet.yaml"]).await;
    assert_eq!(stage.agents().await, ["db", "web"]);
}

async fn unwatched(state: &Path, fake: &Fake) -> Running {
    let free = Some(Listen::At(([127, 0, 0, 1], 0).into()));
    let hub = HubSettings { listen: free, api_listen: free, dashboard_listen: free, ..HubSettings::default() };
    let config = Config {
        state_dir: state.to_owned(),
        hub,
        fleet: None,
        up: true,
        expects_file: false,
        watch: false,
        host: None,
    };
    Running::start(config, vec![Arc::new(fake.clone()) as Arc<dyn Driver>]).await.unwrap()
}
