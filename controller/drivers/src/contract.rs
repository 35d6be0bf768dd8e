//! What every driver keeps to: the promises of [`Driver`], as checks that any driver passes.
//!
//! A test runs each of [`CHECKS`] with a new driver that has no instances. A check that fails panics
//! with what it expected and what it found.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use vm_agent_schemas::fleet::{Mount, Provision};
use vm_agent_schemas::ids::{Incarnation, Nonce, Secret};
use vm_agent_schemas::names::{InstanceName, SnapshotName};
use vm_agent_schemas::observe::{CloneSupport, Instance, InstanceState, MountSupport, Sizes, SnapshotSupport};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::Seed;

use crate::{Base, CreateOrder, Driver, DriverError, Mounts, Target};

/// What a check has to do to the instances behind the driver's back, or has to know of the machines.
#[async_trait]
pub trait World: Send + Sync {
    /// Makes a running instance crash.
    async fn crash(&self, instance: &InstanceName);

    /// An image that the driver can make instances from.
    fn image(&self) -> String {
        "24.04".to_owned()
    }

    /// Sizes that the driver can give; the larger of two, for resizing.
    fn sizes(&self, larger: bool) -> Sizes {
        let factor = if larger { 2 } else { 1 };
        let memory = ByteSize::from_gib(factor);
        Sizes { cpus: if larger { 2 } else { 1 }, memory, disk: ByteSize::from_gib(5 * factor) }
    }

    /// A new, empty folder of the host that may be mounted. The world deletes it when it ends.
    fn folder(&self) -> PathBuf;

    /// A file of an instance, by a path as those of mounts are.
    async fn read(&self, _instance: &InstanceName, _path: &str) -> Look {
        Look::Unable
    }

    /// Writes a note on the disk of an instance that is down. Says whether the world can.
    async fn note(&self, _instance: &InstanceName, _text: &str) -> bool {
        false
    }

    /// The note on the disk of an instance that is down.
    async fn noted(&self, _instance: &InstanceName) -> Look {
        Look::Unable
    }

    /// After how many polls calls are to be given up, one after the other. Calls that wait for machines have
    /// many more polls, all alike.
    fn give_up_points(&self) -> Vec<u32> {
        (1..=40).collect()
    }

    /// How long an instance may take to show what was done to it.
    fn patience(&self) -> Duration {
        Duration::from_secs(10)
    }
}

/// What a look at a file of an instance showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Nothing: the world can't look into instances.
    Unable,
    /// There is no such file.
    Absent,
    /// What is in it.
    Content(String),
}

/// One promise, to be checked on a driver without instances.
#[derive(Clone, Copy)]
pub struct Check {
    /// The promise, as a name.
    pub name: &'static str,
    run: for<'a> fn(Subject<'a>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

impl Check {
    /// Runs the check.
    ///
    /// # Panics
    /// When the driver does not keep the promise.
    pub async fn run(&self, driver: &dyn Driver, world: &dyn World) {
        (self.run)(Subject { driver, world }).await;
    }
}

macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        &[$(Check { name: stringify!($name), run: |subject| Box::pin($name(subject)) }),*]
    };
}

/// All promises.
pub const CHECKS: &[Check] = checks![
    a_created_instance_runs_with_its_nonce,
    creating_twice_makes_one_instance,
    creating_over_anothers_instance_is_refused_and_leaves_it_alone,
    stopping_and_starting_can_be_repeated,
    a_created_instance_that_was_stopped_is_started_by_creating_it_again,
    destroying_frees_the_name_and_can_be_repeated,
    a_stopped_and_a_crashed_instance_can_be_destroyed,
    another_nonce_is_refused_by_every_verb,
    what_does_not_exist_is_missing_and_destroyed_already,
    a_start_with_another_instances_seed_is_refused,
    sizes_change_as_the_capabilities_say,
    a_crashed_instance_shows_as_failed_and_can_be_started,
    a_create_given_up_anywhere_is_finished_by_the_next,
    what_a_create_left_that_was_given_up_anywhere_is_destroyed,
    a_destroy_given_up_anywhere_is_finished_by_the_next,
    stops_and_starts_given_up_anywhere_are_finished_by_the_next,
    creates_at_once_do_not_mix_up,
    starts_at_once_start_one_machine,
    the_nonce_can_be_read_back,
    an_instance_has_the_mounts_of_its_last_start,
    the_hosts_folders_outlive_the_instance,
    a_folder_that_is_not_there_fails_the_start_until_it_is,
    a_snapshot_taken_twice_is_one,
    a_restore_brings_back_what_was_as_another_incarnation,
    what_goes_back_without_a_start_stays_down_until_there_is_one,
    what_runs_and_what_is_no_snapshot_is_not_restored,
    a_clone_lives_beside_its_source_and_after_it,
    what_rests_on_a_deleted_snapshot_stays_whole,
    snapshots_and_restores_given_up_anywhere_are_finished_by_the_next,
    a_suspended_instance_goes_on_and_a_stopped_one_does_not,
    instances_that_start_warm_are_others_and_do_without_each_other,
    a_warm_create_given_up_anywhere_is_finished_by_the_next,
];

/// An order for an instance of this name with a nonce of its own, for tests.
///
/// # Panics
/// When the text is no name.
#[must_use]
pub fn an_order(name: &str) -> CreateOrder {
    let instance: InstanceName = name.parse().expect("the test gives a valid name");
    let seed = Seed {
        fleet: "default".parse().expect("a valid name"),
        agent: name.parse().expect("an instance's name is valid for an agent"),
        incarnation: Incarnation(1),
        nonce: Nonce::generate(),
        hub: "ws://127.0.0.1:9/v1/runtime".to_owned(),
        hub_pin: None,
        join_token: Secret::generate(),
    };
    let sizes = Sizes { cpus: 1, memory: ByteSize::from_gib(1), disk: ByteSize::from_gib(5) };
    CreateOrder {
        instance,
        base: Base::Image("24.04".to_owned()),
        sizes,
        seed,
        mounts: Mounts::new(),
        provision: Provision::default(),
        warm: false,
    }
}

/// The driver that is checked, and what surrounds it.
#[derive(Clone, Copy)]
struct Subject<'a> {
    driver: &'a dyn Driver,
    world: &'a dyn World,
}

impl Subject<'_> {
    fn order(self, name: &str) -> CreateOrder {
        CreateOrder { base: Base::Image(self.world.image()), sizes: self.world.sizes(false), ..an_order(name) }
    }

    fn mounts(self) -> bool {
        self.driver.capabilities().mounts != MountSupport::None
    }

    /// An order with a folder of the host in it, where the driver can mount any.
    fn mounting(self, name: &str) -> CreateOrder {
        let folder = self.mounts().then(|| self.world.folder());
        CreateOrder { mounts: folder.map(|folder| mounted(&folder)).unwrap_or_default(), ..self.order(name) }
    }

    async fn created(self, name: &str) -> CreateOrder {
        let order = self.order(name);
        ok("creating it", self.driver.create(&order).await);
        order
    }

    async fn listed(self) -> Vec<Instance> {
        ok("listing", self.driver.list().await)
    }

    async fn look(self, name: &InstanceName) -> Option<Instance> {
        let mut found: Vec<_> = self.listed().await.into_iter().filter(|instance| instance.name == *name).collect();
        assert!(found.len() <= 1, "`{name}` is listed more than once: {found:?}");
        found.pop()
    }

    /// Expects the instance of this order, and nothing else by its name, to be in this state.
    async fn expect(self, order: &CreateOrder, state: InstanceState) {
        let deadline = Instant::now() + self.world.patience();
        loop {
            let found = self.look(&order.instance).await;
            let is_as_expected = found.as_ref().is_some_and(|found| found.state == state);
            if is_as_expected {
                let nonce = found.and_then(|found| found.nonce);
                assert!(
                    nonce.as_ref().is_none_or(|nonce| *nonce == order.seed.nonce),
                    "`{}` should be listed with nonce {} or none, and has {nonce:?}",
                    order.instance,
                    order.seed.nonce
                );
                return;
            }
            assert!(Instant::now() < deadline, "`{}` should be {state:?}, and shows as {found:?}", order.instance);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Expects the note of the mounted folder in the instance to say this, or not to be there.
    async fn expect_note(self, order: &CreateOrder, content: Option<&str>) {
        let expected = content.map_or(Look::Absent, |content| Look::Content(content.to_owned()));
        let deadline = Instant::now() + self.world.patience();
        loop {
            let found = self.world.read(&order.instance, &format!("{PLACE}/{NOTE}")).await;
            if found == expected || found == Look::Unable {
                return;
            }
            assert!(Instant::now() < deadline, "the note should be {expected:?}, and is {found:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Expects that no instance has this name.
    async fn expect_absent(self, name: &InstanceName) {
        let found = self.look(name).await;
        assert!(found.is_none(), "`{name}` should not exist, and shows as {found:?}");
    }
}

fn ok<T>(what: &str, result: Result<T, DriverError>) -> T {
    result.unwrap_or_else(|error| panic!("{what} should succeed, and failed: {error}"))
}

macro_rules! expect_error {
    ($what:expr, $result:expr, $kind:ident) => {
        match $result {
            Err(DriverError::$kind { .. }) => {}
            other => panic!("{} should be refused as {}, and gave {other:?}", $what, stringify!($kind)),
        }
    };
}

/// Where the checks mount, and the file that they look for there.
const PLACE: &str = "shared/src";
const NOTE: &str = "note.txt";

fn mounted(folder: &Path) -> Mounts {
    Mounts::from([(PLACE.to_owned(), Mount { source: folder.to_owned(), writable: true })])
}

/// Writes the note that is looked for into a folder of the host.
fn note(folder: &Path, content: &str) {
    fs::write(folder.join(NOTE), content).expect("the world's folders can be written");
}

fn with_other_nonce(order: &CreateOrder) -> CreateOrder {
    CreateOrder { seed: Seed { nonce: Nonce::generate(), ..order.seed.clone() }, ..order.clone() }
}

/// Polls a future so many times, and drops it then. Says whether it was over before.
async fn give_up_after(polls: u32, future: impl Future<Output = Result<(), DriverError>> + Send) -> bool {
    let mut future = pin!(future);
    let mut polled = 0;
    std::future::poll_fn(|context| {
        polled += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(result) => {
                ok("a call that nobody gave up", result);
                Poll::Ready(true)
            }
            // Given up at once, without waiting for what would wake it again.
            Poll::Pending if polled == polls => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn a_created_instance_runs_with_its_nonce(subject: Subject<'_>) {
    let order = subject.created("web").await;
    subject.expect(&order, InstanceState::Running).await;
    let all = subject.listed().await;
    assert_eq!(all.len(), 1, "one create should make one instance, and these are listed: {all:?}");
    if subject.driver.capabilities().sizes
        && let Some(sizes) = all[0].sizes
    {
        assert_eq!(sizes, order.sizes, "it should have the sizes that were ordered");
    }
}

async fn creating_twice_makes_one_instance(subject: Subject<'_>) {
    let order = subject.created("web").await;
    let renewed = CreateOrder { seed: Seed { join_token: Secret::generate(), ..order.seed.clone() }, ..order.clone() };
    ok("creating it again with a new join token", subject.driver.create(&renewed).await);
    subject.expect(&order, InstanceState::Running).await;
    assert_eq!(subject.listed().await.len(), 1, "there should be one instance");
}

async fn creating_over_anothers_instance_is_refused_and_leaves_it_alone(subject: Subject<'_>) {
    let order = subject.created("web").await;
    expect_error!("creating over another's", subject.driver.create(&with_other_nonce(&order)).await, Foreign);
    subject.expect(&order, InstanceState::Running).await;
    ok("stopping the first", subject.driver.stop(&order.target()).await);
    expect_error!("creating over another's", subject.driver.create(&with_other_nonce(&order)).await, Foreign);
    subject.expect(&order, InstanceState::Stopped).await;
}

async fn stopping_and_starting_can_be_repeated(subject: Subject<'_>) {
    let order = subject.created("web").await;
    for _ in 0..2 {
        for _ in 0..2 {
            ok("stopping", subject.driver.stop(&order.target()).await);
            subject.expect(&order, InstanceState::Stopped).await;
        }
        for _ in 0..2 {
            ok("starting", subject.driver.start(&order.target(), &order.seed, &order.mounts).await);
            subject.expect(&order, InstanceState::Running).await;
        }
    }
}

async fn a_created_instance_that_was_stopped_is_started_by_creating_it_again(subject: Subject<'_>) {
    let order = subject.created("web").await;
    ok("stopping", subject.driver.stop(&order.target()).await);
    ok("creating again", subject.driver.create(&order).await);
    subject.expect(&order, InstanceState::Running).await;
}

async fn destroying_frees_the_name_and_can_be_repeated(subject: Subject<'_>) {
    let first = subject.created("web").await;
    for _ in 0..2 {
        ok("destroying", subject.driver.destroy(&first.target()).await);
        subject.expect_absent(&first.instance).await;
    }
    let second = subject.created("web").await;
    subject.expect(&second, InstanceState::Running).await;
}

async fn a_stopped_and_a_crashed_instance_can_be_destroyed(subject: Subject<'_>) {
    let stopped = subject.created("stopped").await;
    ok("stopping", subject.driver.stop(&stopped.target()).await);
    let crashed = subject.created("crashed").await;
    subject.world.crash(&crashed.instance).await;
    subject.expect(&crashed, InstanceState::Failed).await;
    for order in [stopped, crashed] {
        ok("destroying", subject.driver.destroy(&order.target()).await);
        subject.expect_absent(&order.instance).await;
    }
}

async fn another_nonce_is_refused_by_every_verb(subject: Subject<'_>) {
    let order = subject.created("web").await;
    let other = with_other_nonce(&order);
    let (target, driver) = (other.target(), subject.driver);
    for state in [InstanceState::Running, InstanceState::Stopped] {
        expect_error!("starting another's", driver.start(&target, &other.seed, &other.mounts).await, Foreign);
        expect_error!("stopping another's", driver.stop(&target).await, Foreign);
        expect_error!("destroying another's", driver.destroy(&target).await, Foreign);
        if driver.capabilities().sizes {
            let resized = driver.resize(&target, &subject.world.sizes(true)).await;
            expect_error!("resizing another's", resized, Foreign);
        }
        subject.expect(&order, state).await;
        ok("stopping ours", driver.stop(&order.target()).await);
    }
}

async fn what_does_not_exist_is_missing_and_destroyed_already(subject: Subject<'_>) {
    let order = subject.order("web");
    let (target, driver) = (order.target(), subject.driver);
    expect_error!("starting nothing", driver.start(&target, &order.seed, &order.mounts).await, Missing);
    expect_error!("stopping nothing", driver.stop(&target).await, Missing);
    expect_error!("proving nothing", driver.prove(&order.instance).await, Missing);
    if driver.capabilities().sizes {
        expect_error!("resizing nothing", driver.resize(&target, &order.sizes).await, Missing);
    }
    ok("destroying nothing", driver.destroy(&target).await);
    subject.expect_absent(&order.instance).await;
}

async fn a_start_with_another_instances_seed_is_refused(subject: Subject<'_>) {
    let order = subject.created("web").await;
    ok("stopping", subject.driver.stop(&order.target()).await);
    let started = subject.driver.start(&order.target(), &with_other_nonce(&order).seed, &order.mounts).await;
    expect_error!("a seed with another nonce", started, Failed);
    subject.expect(&order, InstanceState::Stopped).await;
}

async fn sizes_change_as_the_capabilities_say(subject: Subject<'_>) {
    let order = subject.created("web").await;
    let (larger, capabilities) = (subject.world.sizes(true), subject.driver.capabilities());
    let resized = subject.driver.resize(&order.target(), &larger).await;
    if !capabilities.sizes {
        expect_error!("resizing what has no sizes", resized, Unsupported);
        return subject.expect(&order, InstanceState::Running).await;
    }
    ok("resizing", resized);
    ok("resizing to what it has", subject.driver.resize(&order.target(), &larger).await);
    let state = if capabilities.resize_running { InstanceState::Running } else { InstanceState::Stopped };
    subject.expect(&order, state).await;
    if let Some(sizes) = subject.look(&order.instance).await.and_then(|found| found.sizes) {
        assert_eq!(sizes, larger, "it should have its new sizes");
    }
}

async fn a_crashed_instance_shows_as_failed_and_can_be_started(subject: Subject<'_>) {
    let order = subject.created("web").await;
    subject.world.crash(&order.instance).await;
    subject.expect(&order, InstanceState::Failed).await;
    ok("starting", subject.driver.start(&order.target(), &order.seed, &order.mounts).await);
    subject.expect(&order, InstanceState::Running).await;
    subject.world.crash(&order.instance).await;
    subject.expect(&order, InstanceState::Failed).await;
    ok("stopping", subject.driver.stop(&order.target()).await);
    subject.expect(&order, InstanceState::Stopped).await;
}

async fn a_create_given_up_anywhere_is_finished_by_the_next(subject: Subject<'_>) {
    for polls in subject.world.give_up_points() {
        let order = subject.order("web");
        let over = give_up_after(polls, subject.driver.create(&order)).await;
        ok("creating after a create that was given up", subject.driver.create(&order).await);
        subject.expect(&order, InstanceState::Running).await;
        let all = subject.listed().await;
        assert_eq!(all.len(), 1, "given up after {polls} polls, there should be one instance, and there are {all:?}");
        ok("destroying", subject.driver.destroy(&order.target()).await);
        if over {
            return;
        }
    }
}

async fn what_a_create_left_that_was_given_up_anywhere_is_destroyed(subject: Subject<'_>) {
    for polls in subject.world.give_up_points() {
        let order = subject.order("web");
        let over = give_up_after(polls, subject.driver.create(&order)).await;
        ok("destroying after a create that was given up", subject.driver.destroy(&order.target()).await);
        subject.expect_absent(&order.instance).await;
        if over {
            return;
        }
    }
}

async fn instances_that_start_warm_are_others_and_do_without_each_other(subject: Subject<'_>) {
    let driver = subject.driver;
    if !driver.capabilities().warm {
        return;
    }
    let orders: Vec<_> = ["one", "two", "three"].map(|name| CreateOrder { warm: true, ..subject.order(name) }).into();
    all(orders.iter().map(|order| driver.create(order))).await;
    for order in &orders {
        subject.expect(order, InstanceState::Running).await;
        if let Some(nonce) = ok("proving", driver.prove(&order.instance).await) {
            assert_eq!(nonce, order.seed.nonce, "`{}` should show its own nonce", order.instance);
        }
    }
    assert_eq!(subject.listed().await.len(), orders.len(), "each create should make one instance, and nothing else");
    let [one, two, three] = &orders[..] else { return };
    ok("destroying one", driver.destroy(&one.target()).await);
    ok("stopping another", driver.stop(&two.target()).await);
    ok("starting it", driver.start(&two.target(), &two.seed, &two.mounts).await);
    subject.expect(two, InstanceState::Running).await;
    subject.expect(three, InstanceState::Running).await;
}

async fn a_warm_create_given_up_anywhere_is_finished_by_the_next(subject: Subject<'_>) {
    if !subject.driver.capabilities().warm {
        return;
    }
    for polls in subject.world.give_up_points() {
        let order = CreateOrder { warm: true, ..subject.order("web") };
        let over = give_up_after(polls, subject.driver.create(&order)).await;
        ok("creating after a create that was given up", subject.driver.create(&order).await);
        subject.expect(&order, InstanceState::Running).await;
        let all = subject.listed().await;
        assert_eq!(all.len(), 1, "given up after {polls} polls, there should be one instance, and there are {all:?}");
        ok("destroying", subject.driver.destroy(&order.target()).await);
        if over {
            return;
        }
    }
}

async fn a_destroy_given_up_anywhere_is_finished_by_the_next(subject: Subject<'_>) {
    for polls in subject.world.give_up_points() {
        let order = subject.created("web").await;
        let over = give_up_after(polls, subject.driver.destroy(&order.target())).await;
        ok("destroying after a destroy that was given up", subject.driver.destroy(&order.target()).await);
        subject.expect_absent(&order.instance).await;
        if over {
            return;
        }
    }
}

async fn stops_and_starts_given_up_anywhere_are_finished_by_the_next(subject: Subject<'_>) {
    let order = subject.mounting("web");
    order.mounts.values().for_each(|mount| note(&mount.source, "seen"));
    ok("creating it", subject.driver.create(&order).await);
    let (target, driver) = (order.target(), subject.driver);
    for polls in subject.world.give_up_points() {
        let stopped = give_up_after(polls, driver.stop(&target)).await;
        ok("stopping after a stop that was given up", driver.stop(&target).await);
        subject.expect(&order, InstanceState::Stopped).await;
        let _ = give_up_after(polls, driver.start(&target, &order.seed, &order.mounts)).await;
        ok("stopping after a start that was given up", driver.stop(&target).await);
        subject.expect(&order, InstanceState::Stopped).await;
        let started = give_up_after(polls, driver.start(&target, &order.seed, &order.mounts)).await;
        ok("starting after a start that was given up", driver.start(&target, &order.seed, &order.mounts).await);
        subject.expect(&order, InstanceState::Running).await;
        subject.expect_note(&order, subject.mounts().then_some("seen")).await;
        if stopped && started {
            return;
        }
    }
}

async fn creates_at_once_do_not_mix_up(subject: Subject<'_>) {
    let orders: Vec<_> = ["one", "two", "three", "four", "five"].map(|name| subject.order(name)).into();
    all(orders.iter().map(|order| subject.driver.create(order))).await;
    for order in &orders {
        subject.expect(order, InstanceState::Running).await;
    }
    assert_eq!(subject.listed().await.len(), orders.len(), "each create should make one instance");
    let targets: Vec<_> = orders.iter().map(CreateOrder::target).collect();
    all(targets.iter().map(|target| subject.driver.destroy(target))).await;
    assert_eq!(subject.listed().await, [], "nothing should be left");
}

async fn starts_at_once_start_one_machine(subject: Subject<'_>) {
    let order = subject.created("web").await;
    ok("stopping", subject.driver.stop(&order.target()).await);
    let target = order.target();
    all((0..3).map(|_| subject.driver.start(&target, &order.seed, &order.mounts))).await;
    subject.expect(&order, InstanceState::Running).await;
    ok("stopping", subject.driver.stop(&target).await);
    subject.expect(&order, InstanceState::Stopped).await;
}

async fn the_nonce_can_be_read_back(subject: Subject<'_>) {
    let order = subject.created("web").await;
    if let Some(nonce) = ok("proving", subject.driver.prove(&order.instance).await) {
        assert_eq!(nonce, order.seed.nonce, "the nonce inside should be the order's");
    }
    let target = Target { nonce: order.seed.nonce.clone(), ..order.target() };
    ok("stopping with the nonce", subject.driver.stop(&target).await);
}

async fn an_instance_has_the_mounts_of_its_last_start(subject: Subject<'_>) {
    let (driver, folders) = (subject.driver, [subject.world.folder(), subject.world.folder()]);
    note(&folders[0], "first");
    note(&folders[1], "second");
    let order = CreateOrder { mounts: mounted(&folders[0]), ..subject.order("web") };
    let created = driver.create(&order).await;
    if !subject.mounts() {
        expect_error!("mounting what can't be mounted", created, Unsupported);
        return subject.expect_absent(&order.instance).await;
    }
    ok("creating it with a mount", created);
    subject.expect_note(&order, Some("first")).await;
    note(&folders[0], "changed");
    subject.expect_note(&order, Some("changed")).await;
    for (mounts, content) in
        [(mounted(&folders[1]), Some("second")), (Mounts::new(), None), (order.mounts.clone(), Some("changed"))]
    {
        ok("stopping", driver.stop(&order.target()).await);
        ok("starting with other mounts", driver.start(&order.target(), &order.seed, &mounts).await);
        subject.expect(&order, InstanceState::Running).await;
        subject.expect_note(&order, content).await;
    }
}

async fn the_hosts_folders_outlive_the_instance(subject: Subject<'_>) {
    if !subject.mounts() {
        return;
    }
    let folder = subject.world.folder();
    let inner = folder.join("inner");
    fs::create_dir(&inner).expect("the world's folders can be written");
    note(&inner, "in a folder");
    note(&folder, "kept");
    let order = CreateOrder { mounts: mounted(&folder), ..subject.order("web") };
    for stop in [false, true] {
        ok("creating it with a mount", subject.driver.create(&order).await);
        if stop {
            ok("stopping", subject.driver.stop(&order.target()).await);
        }
        ok("destroying", subject.driver.destroy(&order.target()).await);
        for (path, content) in [(inner.join(NOTE), "in a folder"), (folder.join(NOTE), "kept")] {
            let found = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(found, content, "{} should be as it was", path.display());
        }
    }
}

async fn a_folder_that_is_not_there_fails_the_start_until_it_is(subject: Subject<'_>) {
    let driver = subject.driver;
    if !subject.mounts() {
        return;
    }
    let folder = subject.world.folder().join("later");
    let appears = || {
        fs::create_dir(&folder).expect("the world's folders can be written");
        note(&folder, "there now");
    };
    let order = CreateOrder { mounts: mounted(&folder), ..subject.order("web") };
    expect_error!("creating with a folder that is not there", driver.create(&order).await, Failed);
    appears();
    ok("creating once the folder is there", driver.create(&order).await);
    subject.expect(&order, InstanceState::Running).await;
    ok("stopping", driver.stop(&order.target()).await);
    fs::remove_dir_all(&folder).expect("the world's folders can be deleted");
    let started = driver.start(&order.target(), &order.seed, &order.mounts).await;
    expect_error!("starting with a folder that is not there", started, Failed);
    subject.expect(&order, InstanceState::Stopped).await;
    appears();
    ok("starting once the folder is there", driver.start(&order.target(), &order.seed, &order.mounts).await);
    subject.expect(&order, InstanceState::Running).await;
    subject.expect_note(&order, Some("there now")).await;
}

/// The name of the snapshot that the checks take.
fn point() -> SnapshotName {
    "point".parse().expect("a valid name")
}

/// The next incarnation of an instance, on its way there.
fn next_life(order: &CreateOrder) -> (CreateOrder, Target) {
    let seed = Seed { nonce: Nonce::generate(), incarnation: order.seed.incarnation.next(), ..order.seed.clone() };
    let order = CreateOrder { seed, ..order.clone() };
    let target = order.target();
    (order, target)
}

impl Subject<'_> {
    fn support(self) -> SnapshotSupport {
        self.driver.capabilities().snapshots
    }

    /// Takes a snapshot of an instance that is up, which goes down for that where it has to.
    async fn snapshot(self, order: &CreateOrder) {
        if self.support() == SnapshotSupport::Down {
            ok("stopping for a snapshot", self.driver.stop(&order.target()).await);
        }
        ok("taking a snapshot", self.driver.snapshot(&order.target(), &point()).await);
    }

    /// Stops an instance, and restores it as its next incarnation.
    async fn restored(self, order: &CreateOrder) -> CreateOrder {
        let (next, target) = next_life(order);
        let target = Target { former: Some(order.seed.nonce.clone()), ..target };
        ok("stopping", self.driver.stop(&order.target()).await);
        ok("restoring", self.driver.restore(&target, &point(), &next.seed, &next.mounts).await);
        self.expect(&next, InstanceState::Running).await;
        next
    }

    /// Expects these snapshots of an instance, where the listing tells.
    async fn expect_snapshots(self, order: &CreateOrder, names: &[SnapshotName]) {
        if let Some(snapshots) = self.look(&order.instance).await.and_then(|found| found.snapshots) {
            assert_eq!(snapshots.iter().collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
        }
    }

    /// Stops an instance, and writes a note on its disk.
    async fn note(self, order: &CreateOrder, text: &str) {
        ok("stopping for a note", self.driver.stop(&order.target()).await);
        self.world.note(&order.instance, text).await;
    }

    /// Stops an instance, and expects this note on its disk.
    async fn expect_noted(self, order: &CreateOrder, text: &str) {
        ok("stopping to look at the note", self.driver.stop(&order.target()).await);
        let found = self.world.noted(&order.instance).await;
        let as_expected = found == Look::Unable || found == Look::Content(text.to_owned());
        assert!(as_expected, "the note of `{}` should be `{text}`, and is {found:?}", order.instance);
    }
}

async fn a_snapshot_taken_twice_is_one(subject: Subject<'_>) {
    let order = subject.created("web").await;
    let (target, driver) = (order.target(), subject.driver);
    if subject.support() == SnapshotSupport::None {
        expect_error!("taking a snapshot", driver.snapshot(&target, &point()).await, Unsupported);
        let restored = driver.restore(&target, &point(), &order.seed, &order.mounts).await;
        expect_error!("restoring", restored, Unsupported);
        return subject.expect(&order, InstanceState::Running).await;
    }
    let state =
        if subject.support() == SnapshotSupport::Live { InstanceState::Running } else { InstanceState::Stopped };
    for _ in 0..2 {
        subject.snapshot(&order).await;
        subject.expect(&order, state).await;
        subject.expect_snapshots(&order, &[point()]).await;
    }
    let other = with_other_nonce(&order).target();
    expect_error!("taking one of another's", driver.snapshot(&other, &point()).await, Foreign);
    expect_error!("deleting one of another's", driver.delete_snapshot(&other, &point()).await, Foreign);
    for _ in 0..2 {
        ok("deleting it", driver.delete_snapshot(&target, &point()).await);
        subject.expect_snapshots(&order, &[]).await;
    }
    subject.expect(&order, state).await;
}

async fn a_restore_brings_back_what_was_as_another_incarnation(subject: Subject<'_>) {
    if subject.support() == SnapshotSupport::None {
        return;
    }
    let order = subject.created("web").await;
    subject.note(&order, "before").await;
    for live in [false, true] {
        if live {
            ok("starting", subject.driver.start(&order.target(), &order.seed, &order.mounts).await);
            ok("deleting it", subject.driver.delete_snapshot(&order.target(), &point()).await);
        }
        subject.snapshot(&order).await;
    }
    subject.note(&order, "after").await;
    let next = subject.restored(&order).await;
    expect_error!("stopping the former incarnation", subject.driver.stop(&order.target()).await, Foreign);
    subject.expect_snapshots(&next, &[point()]).await;
    let again = subject.driver.restore(&next.target(), &point(), &next.seed, &next.mounts).await;
    ok("restoring what is restored", again);
    subject.expect_noted(&next, "before").await;
    subject.note(&next, "another").await;
    let last = subject.restored(&next).await;
    subject.expect_noted(&last, "before").await;
    ok("starting it", subject.driver.start(&last.target(), &last.seed, &last.mounts).await);
    subject.expect(&last, InstanceState::Running).await;
}

async fn what_goes_back_without_a_start_stays_down_until_there_is_one(subject: Subject<'_>) {
    let (driver, order) = (subject.driver, subject.created("web").await);
    let (next, target) = next_life(&order);
    let target = Target { former: Some(order.seed.nonce.clone()), ..target };
    if subject.support() == SnapshotSupport::None {
        return expect_error!("going back", driver.go_back(&target, &point(), &next.seed).await, Unsupported);
    }
    subject.note(&order, "before").await;
    ok("taking a snapshot", driver.snapshot(&order.target(), &point()).await);
    let sizes = driver.snapshot_sizes(&order.target()).await.expect("what it takes can be looked up");
    assert!(sizes.keys().all(|name| *name == point()), "{sizes:?}");
    ok("starting", driver.start(&order.target(), &order.seed, &order.mounts).await);
    expect_error!("going back as it runs", driver.go_back(&target, &point(), &next.seed).await, Failed);
    subject.note(&order, "after").await;
    for _ in 0..2 {
        ok("going back", driver.go_back(&target, &point(), &next.seed).await);
        subject.expect(&next, InstanceState::Stopped).await;
    }
    expect_error!("starting the former", driver.start(&order.target(), &order.seed, &order.mounts).await, Foreign);
    ok("starting", driver.start(&next.target(), &next.seed, &next.mounts).await);
    subject.expect(&next, InstanceState::Running).await;
    subject.expect_noted(&next, "before").await;
}

async fn what_runs_and_what_is_no_snapshot_is_not_restored(subject: Subject<'_>) {
    if subject.support() == SnapshotSupport::None {
        return;
    }
    let order = subject.created("web").await;
    subject.snapshot(&order).await;
    let (next, target) = next_life(&order);
    let foreign = subject.driver.restore(&target, &point(), &next.seed, &next.mounts).await;
    expect_error!("restoring another's", foreign, Foreign);
    let target = Target { former: Some(order.seed.nonce.clone()), ..target };
    ok("starting", subject.driver.start(&order.target(), &order.seed, &order.mounts).await);
    let running = subject.driver.restore(&target, &point(), &next.seed, &next.mounts).await;
    expect_error!("restoring what runs", running, Failed);
    subject.expect(&order, InstanceState::Running).await;
    ok("stopping", subject.driver.stop(&order.target()).await);
    let unknown = "unknown".parse().expect("a valid name");
    let missing = subject.driver.restore(&target, &unknown, &next.seed, &next.mounts).await;
    expect_error!("restoring what was never taken", missing, Failed);
    subject.expect(&order, InstanceState::Stopped).await;
}

async fn a_clone_lives_beside_its_source_and_after_it(subject: Subject<'_>) {
    let (driver, support) = (subject.driver, subject.driver.capabilities().clones);
    if support == CloneSupport::None {
        return;
    }
    let source = subject.created("web").await;
    subject.note(&source, "both").await;
    ok("starting", driver.start(&source.target(), &source.seed, &source.mounts).await);
    subject.snapshot(&source).await;
    ok("starting", driver.start(&source.target(), &source.seed, &source.mounts).await);
    let base = Base::Snapshot(source.target(), point());
    let clone = CreateOrder { base, ..subject.order("copy") };
    let mut beside = InstanceState::Running;
    if support == CloneSupport::Down {
        expect_error!("making a clone of what runs", driver.create(&clone).await, Failed);
        subject.expect_absent(&clone.instance).await;
        ok("stopping", driver.stop(&source.target()).await);
        beside = InstanceState::Stopped;
    }
    for _ in 0..2 {
        ok("making a clone", driver.create(&clone).await);
        subject.expect(&clone, InstanceState::Running).await;
        subject.expect(&source, beside).await;
    }
    subject.note(&clone, "the clone's").await;
    subject.expect_noted(&source, "both").await;
    ok("destroying the source", driver.destroy(&source.target()).await);
    subject.expect_noted(&clone, "the clone's").await;
    ok("starting the clone", driver.start(&clone.target(), &clone.seed, &clone.mounts).await);
    subject.expect(&clone, InstanceState::Running).await;
    let base = Base::Snapshot(clone.target(), point());
    let made = driver.create(&CreateOrder { base, ..subject.order("none") }).await;
    expect_error!("making a clone of no snapshot", made, Failed);
    subject.expect_absent(&"none".parse().expect("a valid name")).await;
}

async fn what_rests_on_a_deleted_snapshot_stays_whole(subject: Subject<'_>) {
    if subject.support() == SnapshotSupport::None {
        return;
    }
    let (order, driver) = (subject.created("web").await, subject.driver);
    let first = "first".parse().expect("a valid name");
    subject.note(&order, "kept").await;
    ok("taking the first snapshot", driver.snapshot(&order.target(), &first).await);
    ok("starting", driver.start(&order.target(), &order.seed, &order.mounts).await);
    subject.snapshot(&order).await;
    ok("deleting the first", driver.delete_snapshot(&order.target(), &first).await);
    subject.expect_snapshots(&order, &[point()]).await;
    subject.expect_noted(&order, "kept").await;
    subject.note(&order, "lost").await;
    let next = subject.restored(&order).await;
    ok("deleting the other", driver.delete_snapshot(&next.target(), &point()).await);
    subject.expect_noted(&next, "kept").await;
    ok("starting", driver.start(&next.target(), &next.seed, &next.mounts).await);
    subject.expect(&next, InstanceState::Running).await;
}

async fn snapshots_and_restores_given_up_anywhere_are_finished_by_the_next(subject: Subject<'_>) {
    if subject.support() == SnapshotSupport::None {
        return;
    }
    let (mut order, driver) = (subject.created("web").await, subject.driver);
    subject.note(&order, "kept").await;
    ok("starting", driver.start(&order.target(), &order.seed, &order.mounts).await);
    if subject.support() == SnapshotSupport::Down {
        ok("stopping for snapshots", driver.stop(&order.target()).await);
    }
    for polls in subject.world.give_up_points() {
        ok("deleting it", driver.delete_snapshot(&order.target(), &point()).await);
        let _ = give_up_after(polls, driver.snapshot(&order.target(), &point())).await;
        ok("a snapshot after one that was given up", driver.snapshot(&order.target(), &point()).await);
        subject.expect_snapshots(&order, &[point()]).await;
        ok("stopping", driver.stop(&order.target()).await);
        let (next, target) = next_life(&order);
        let target = Target { former: Some(order.seed.nonce.clone()), ..target };
        let _ = give_up_after(polls, driver.restore(&target, &point(), &next.seed, &next.mounts)).await;
        let restored = driver.restore(&target, &point(), &next.seed, &next.mounts).await;
        ok("restoring after a restore that was given up", restored);
        subject.expect(&next, InstanceState::Running).await;
        order = next;
        if subject.support() == SnapshotSupport::Down {
            ok("stopping for snapshots", driver.stop(&order.target()).await);
        }
    }
    subject.expect_noted(&order, "kept").await;
}

async fn a_suspended_instance_goes_on_and_a_stopped_one_does_not(subject: Subject<'_>) {
    let (order, driver) = (subject.created("web").await, subject.driver);
    let target = order.target();
    if !driver.capabilities().suspend {
        expect_error!("suspending", driver.suspend(&target).await, Unsupported);
        return subject.expect(&order, InstanceState::Running).await;
    }
    for _ in 0..2 {
        for _ in 0..2 {
            ok("suspending", driver.suspend(&target).await);
            subject.expect(&order, InstanceState::Suspended).await;
        }
        ok("going on", driver.start(&target, &order.seed, &order.mounts).await);
        subject.expect(&order, InstanceState::Running).await;
    }
    ok("suspending", driver.suspend(&target).await);
    ok("stopping what is suspended", driver.stop(&target).await);
    subject.expect(&order, InstanceState::Stopped).await;
    ok("suspending what is stopped", driver.suspend(&target).await);
    subject.expect(&order, InstanceState::Stopped).await;
    for polls in subject.world.give_up_points() {
        ok("starting", driver.start(&target, &order.seed, &order.mounts).await);
        let over = give_up_after(polls, driver.suspend(&target)).await;
        ok("suspending after a call that was given up", driver.suspend(&target).await);
        subject.expect(&order, InstanceState::Suspended).await;
        if over {
            return;
        }
    }
}

/// Drives calls side by side until all have succeeded.
async fn all<F: Future<Output = Result<(), DriverError>>>(calls: impl Iterator<Item = F>) {
    let mut open: Vec<_> = calls.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        open.retain_mut(|call| match call.as_mut().poll(context) {
            Poll::Ready(result) => {
                ok("a call beside others", result);
                false
            }
            Poll::Pending => true,
        });
        if open.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
