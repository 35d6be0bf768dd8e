//! Tasks, and what they wrote.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use vm_agent_schemas::api::{Problem, ProblemCode, TaskRequest, TaskTo, TasksRequest};
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{Task, TaskSource};
use vm_agent_store::output::{Page, Position, Wanted};
use vm_agent_store::tasks::Filter;
use vm_agent_store::{self as store};

use super::{Actor, Controller, internal};
use crate::engine::{HubCall, accept_all, tasks};
use crate::reconciler::{carry_out, tell};

/// How long a cancellation is waited for. One that takes longer is on its way.
const CANCEL_SEEN: Duration = Duration::from_secs(5);

impl Controller {
    /// Accepts a task by hand for one agent. Asking twice with one id or one key is asking once.
    ///
    /// # Errors
    /// When there is no such agent, something wrong with the task, another task with that id or key, or the
    /// store fails.
    pub async fn submit_task(&self, name: &AgentName, request: TaskRequest, actor: &Actor) -> Result<Task, Problem> {
        let request = TasksRequest { to: TaskTo::Agents(vec![name.clone()]), task: request };
        let tasks = self.submit_tasks(&request, actor).await?;
        tasks.into_iter().next().ok_or_else(|| Problem::new(ProblemCode::Internal, "no task came of the request"))
    }

    /// Accepts tasks by hand: one for each of several agents, or one for any of several. Asking twice with one
    /// id or one key is asking once.
    ///
    /// # Errors
    /// When there is no such agent, something wrong with the task, another task with that id or key, or the
    /// store fails.
    pub async fn submit_tasks(&self, request: &TasksRequest, actor: &Actor) -> Result<Vec<Task>, Problem> {
        let now = Timestamp::now();
        let tasks = self.core.ledger.look(|records| tasks::requested(records, request, &actor.name, now))?;
        // What has no name of its own was never asked for before.
        let is_named = request.task.id.is_some() || request.task.key.is_some();
        if is_named && let Some(known) = self.asked_before(&tasks).await? {
            return Ok(known);
        }
        let message = match (tasks.as_slice(), request.task.key.as_deref()) {
            ([task], _) => format!("task {} of {} is queued", task.id, actor.name),
            (tasks, _) => format!("a task of {} for {} agents is queued", actor.name, tasks.len()),
        };
        let sequence = accept_all(tasks.clone(), message, Vec::new());
        carry_out(&self.core, sequence, now).await.map_err(|error| internal(&error))?;
        // Who asked for the same at the same time may have been first.
        let known = if is_named { self.asked_before(&tasks).await? } else { None };
        Ok(known.unwrap_or(tasks))
    }

    /// The tasks that are known under the id of this one, or under the key of these.
    async fn asked_before(&self, tasks: &[Task]) -> Result<Option<Vec<Task>>, Problem> {
        let key = tasks.first().and_then(|task| match &task.source {
            TaskSource::Request { key, .. } => key.clone(),
            TaskSource::File { .. } => None,
        });
        let (wanted, id) = (key.clone(), tasks.first().filter(|_| tasks.len() == 1).map(|task| task.id));
        let known = self
            .read(move |conn| {
                let known = id.map(|id| store::tasks::get(conn, id)).transpose()?.flatten();
                match (known, wanted) {
                    (Some(known), _) => Ok(vec![known]),
                    (None, Some(key)) => store::tasks::by_key(conn, &key),
                    (None, None) => Ok(Vec::new()),
                }
            })
            .await?;
        if known.is_empty() {
            return Ok(None);
        }
        if !tasks::is_same(&known, tasks) {
            let what = key.map_or_else(|| "that id".to_owned(), |key| format!("the key `{key}`"));
            let other = known.first().map_or_else(String::new, |task| format!(" ({})", task.id));
            let reason = format!("another task{other} was asked for with {what}");
            return Err(Problem::new(ProblemCode::Conflict, reason).remedy("choose another one, or ask for the same"));
        }
        Ok(Some(known))
    }

    /// The latest tasks that a filter lets through, the latest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn tasks(&self, filter: Filter, limit: u32) -> Result<Vec<Task>, Problem> {
        self.read(move |conn| store::tasks::list(conn, &filter, limit)).await
    }

    /// An agent's latest tasks.
    ///
    /// # Errors
    /// When there is no such agent, or the store fails.
    pub async fn tasks_of(&self, name: &AgentName, limit: u32) -> Result<Vec<Task>, Problem> {
        self.known_or_gone(name)?;
        self.tasks(Filter { agent: Some(name.clone()), ..Filter::default() }, limit).await
    }

    /// A task.
    ///
    /// # Errors
    /// When there is none with that id, or the store fails.
    pub async fn task(&self, id: TaskId) -> Result<Task, Problem> {
        let missing = || Problem::new(ProblemCode::NotFound, format!("there is no task {id}"));
        self.read(move |conn| store::tasks::get(conn, id)).await?.ok_or_else(missing)
    }

    /// Cancels a task. What is queued ends at once; what runs ends when its runtime has ended it.
    ///
    /// # Errors
    /// When there is none with that id, when it has ended otherwise, or the store fails.
    pub async fn cancel_task(&self, id: TaskId, actor: &Actor) -> Result<Task, Problem> {
        let mut news = self.core.output.news();
        let task = self.task(id).await?;
        match task.outcome() {
            Some(_) if task.canceled_by.is_some() => return Ok(task),
            Some(outcome) => {
                let reason = format!("task {id} is over, and can't be cancelled: it {outcome}");
                return Err(Problem::new(ProblemCode::Conflict, reason));
            }
            None => {}
        }
        tell(&self.core.hub, HubCall::Cancel(id, actor.name.clone()));
        let seen = async {
            loop {
                let task = self.task(id).await?;
                if task.canceled_by.is_some() || task.outcome().is_some() || news.changed().await.is_err() {
                    return Ok(task);
                }
            }
        };
        match timeout(CANCEL_SEEN, seen).await {
            Ok(task) => task,
            Err(_) => self.task(id).await,
        }
    }

    /// Does a task again that has ended: as a new one, which a dead letter gives way to.
    ///
    /// # Errors
    /// When there is none with that id, it is not over, its agent has left, or the store fails.
    pub async fn replay_task(&self, id: TaskId, actor: &Actor) -> Result<Task, Problem> {
        let now = Timestamp::now();
        let task = self.task(id).await?;
        let (again, sequence) = self.core.ledger.look(|records| tasks::replay(records, &task, &actor.name, now))?;
        carry_out(&self.core, sequence, now).await.map_err(|error| internal(&error))?;
        Ok(again)
    }

    /// Lets a task be a dead letter no more.
    ///
    /// # Errors
    /// When it is none, or the store fails.
    pub async fn drop_dead_task(&self, id: TaskId) -> Result<(), Problem> {
        let dropped = self.write(move |conn| store::tasks::drop_dead(conn, id)).await?;
        let missing = || Problem::new(ProblemCode::NotFound, format!("task {id} is no dead letter"));
        dropped.then_some(()).ok_or_else(missing)
    }

    /// A page of what a task wrote.
    ///
    /// # Errors
    /// When the output can't be read.
    pub(crate) async fn output(&self, wanted: Wanted, after: Position, max: usize) -> Result<Page, Problem> {
        self.core.output.read(wanted, after, max).await.map_err(|error| internal(&error))
    }

    /// Tells when tasks or messages may be further.
    pub(crate) fn news(&self) -> tokio::sync::watch::Receiver<()> {
        self.core.output.news()
    }
}
