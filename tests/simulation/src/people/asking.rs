//! What people ask of agents: tasks of every kind, for one, for several and for any; and that they are dropped.

use std::time::Duration;

use fastrand::Rng;
use vm_agent_daemon::engine::records::Records;
use vm_agent_daemon::engine::{Effect, HubCall, accept_all, tasks};
use vm_agent_schemas::api::{TaskRequest, TaskTo, TasksRequest};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::selector::Selector;
use vm_agent_schemas::task::{Job, Retry, RetryOn, Terms};
use vm_agent_schemas::units::{ByteSize, Span};
use vm_agent_store as store;

use super::{length, pick};
use crate::clock::{MINUTE, SECOND};
use crate::controller::Do;
use crate::world::World;

/// A program that fails or not, takes its time and writes something.
pub(super) fn argv(rng: &mut Rng) -> Vec<String> {
    let code = u32::from(rng.u8(..3) == 0);
    let most = pick(rng, &[0, 40, 200, 900]);
    let numbers = [u64::from(code), length(rng), most, rng.u64(..100)];
    std::iter::once("run".to_owned()).chain(numbers.map(|number| number.to_string())).collect()
}

impl World {
    pub(crate) fn ask_for_task(&mut self, records: &Records, name: &AgentName) {
        let now = self.clock.wall();
        let rng = &mut self.rng;
        let selector: Selector = pick(rng, &["team=a", "team=b", "team"]).parse().expect("it is a selector");
        let to = match rng.u8(..6) {
            0 => TaskTo::Any(selector),
            1 => TaskTo::Each(selector),
            _ => TaskTo::Agents(vec![name.clone()]),
        };
        let mut job = Job::exec(argv(rng));
        job.output = ByteSize::from_bytes(pick(rng, &[16, 100, 401, 8000]));
        let on = pick(rng, &[&[RetryOn::Failed, RetryOn::NotStarted][..], &[RetryOn::TimedOut], &[]]);
        let retry = Retry {
            attempts: rng.u32(1..5),
            on: on.iter().copied().collect(),
            backoff: Span::from_secs(rng.u64(..5)),
            backoff_max: Span::from_secs(10),
        };
        let deadline = Duration::from_millis(rng.u64(SECOND..10 * MINUTE));
        let terms = Terms {
            timeout: Span::from_secs(rng.u64(1..60)),
            deadline: (rng.u8(..6) == 0).then(|| now + deadline),
            idempotent: pick(rng, &[None, Some(false), Some(true)]),
            retry: rng.bool().then_some(retry),
            key: pick(rng, &[None, None, Some("x"), Some("y")]).map(str::to_owned),
        };
        let key = (rng.u8(..8) == 0).then(|| format!("request {}", rng.u8(..4)));
        let known =
            key.as_ref().map(|key| store::tasks::by_key(&self.disk, key).expect("the database in memory reads"));
        if known.is_some_and(|known| !known.is_empty()) {
            return;
        }
        let request = TasksRequest { to, task: TaskRequest { job, terms, id: None, key } };
        let Ok(asked) = tasks::requested(records, &request, "ana", now) else { return };
        self.trace(|| format!("somebody asks for {} tasks: {:?}", asked.len(), request.to));
        self.carry_out(accept_all(asked, "a task is queued", Vec::new()).into_iter().map(Do::Effect).collect());
    }

    /// Somebody wants a task no more.
    pub(crate) fn cancel_some_task(&mut self) {
        let open = store::tasks::unfinished(&self.disk).expect("the database in memory reads");
        if let Some(task) = self.rng.choice(open) {
            self.trace(|| format!("somebody cancels a task of {:?}", task.agent));
            self.carry_out(vec![Do::Effect(Effect::Hub(HubCall::Cancel(task.id, "ana".to_owned())))]);
        }
    }
}
