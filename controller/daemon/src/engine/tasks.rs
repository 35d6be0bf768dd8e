//! Tasks by hand: what may be asked for, and what a request comes to.

use std::collections::BTreeSet;

use jiff::Timestamp;
use vm_agent_schemas::api::{Problem, ProblemCode, TaskRequest, TaskTo, TasksRequest};
use vm_agent_schemas::ids::{GroupId, TaskId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::selector::Selector;
use vm_agent_schemas::task::{Job, OUTPUT_MAX, Task, TaskSource, Terms, Work};
use vm_agent_schemas::wire::TEXT_MAX;

use super::directory::matching;
use super::records::{Change, Records};
use super::{Sequence, accept_all, intent};

/// Longest key, in characters.
const KEY_MAX: usize = 128;

/// Longest job as JSON, in bytes: what a message to the runtime has room for, and some for what is around it.
const JOB_MAX: usize = TEXT_MAX - 16 * 1024;

/// Most agents that one request may make a task for.
const AGENTS_MAX: usize = 10_000;

/// The tasks that a request comes to, were it a new one.
///
/// # Errors
/// When an agent does not exist, nobody has the labels, or there is something wrong with the task.
pub fn requested(
    records: &Records,
    request: &TasksRequest,
    author: &str,
    now: Timestamp,
) -> Result<Vec<Task>, Problem> {
    let TasksRequest { to, task: request } = request;
    check(request)?;
    let source = TaskSource::Request { author: author.to_owned(), key: request.key.clone() };
    let task =
        |id: TaskId, agent| Task::new(id, agent, source.clone(), request.job.clone(), request.terms.clone(), now);
    let id = request.id;
    let agents = match to {
        TaskTo::Any(selector) => {
            somebody(matching(records, selector, now), selector)?;
            let task = task(id.unwrap_or_else(TaskId::generate), None);
            return Ok(vec![Task { pool: Some(selector.clone()), ..task }]);
        }
        TaskTo::Each(selector) => somebody(matching(records, selector, now), selector)?,
        TaskTo::Agents(agents) => known(records, agents, now)?,
    };
    let is_each = matches!(to, TaskTo::Each(_)) || agents.len() > 1;
    match agents.as_slice() {
        [] => Err(invalid("no agent is named")),
        [agent] if !is_each => Ok(vec![task(id.unwrap_or_else(TaskId::generate), Some(agent.clone()))]),
        _ if id.is_some() => Err(invalid("an `id` is for one task; give a `key` to ask for several only once")),
        agents if agents.len() > AGENTS_MAX => {
            Err(invalid(format!("{} agents are named; at most {AGENTS_MAX} are allowed", agents.len())))
        }
        agents => {
            let group = GroupId::generate();
            let one = |agent: &AgentName| Task { group: Some(group), ..task(TaskId::generate(), Some(agent.clone())) };
            Ok(agents.iter().map(one).collect())
        }
    }
}

fn somebody(agents: Vec<AgentName>, selector: &Selector) -> Result<Vec<AgentName>, Problem> {
    if agents.is_empty() {
        let reason = format!("no agent has the labels `{selector}`");
        return Err(
            Problem::new(ProblemCode::NotFound, reason).remedy("see which labels there are: vm-agent list -o wide")
        );
    }
    Ok(agents)
}

/// Each of the agents once, if all of them exist.
fn known(records: &Records, agents: &[AgentName], now: Timestamp) -> Result<Vec<AgentName>, Problem> {
    let agents: BTreeSet<&AgentName> = agents.iter().collect();
    match agents.iter().find(|agent| !is_known(records, agent, now)) {
        Some(agent) => Err(intent::missing(records, agent)),
        None => Ok(agents.into_iter().cloned().collect()),
    }
}

/// Whether there is such an agent: one that is declared, or one that has not left yet.
#[must_use]
pub fn is_known(records: &Records, agent: &AgentName, now: Timestamp) -> bool {
    let wanted = || vm_agent_plan::effective(&records.fleet, &records.overrides, now).wanted;
    records.claims.contains_key(agent) || wanted().contains_key(agent)
}

/// Whether tasks that are known are what a request comes to: then it was made before.
#[must_use]
pub fn is_same(known: &[Task], requested: &[Task]) -> bool {
    let (Some(first), Some(asked)) = (known.first(), requested.first()) else { return false };
    let is_alike = first.job == asked.job && first.terms == asked.terms && first.pool == asked.pool;
    // Which agents have some labels may have changed in the meantime; it was asked for those of then.
    let is_for = first.pool.is_some()
        || (first.group.is_some() && asked.group.is_some())
        || (first.group.is_none() && asked.group.is_none() && first.agent == asked.agent);
    is_alike && is_for
}

/// Does a task again that has ended: as a new one, which the dead letter gives way to. What does one of the file
/// again on the machine that it was for counts as a run of it.
///
/// # Errors
/// When it has not ended, or its agent has left.
pub fn replay(records: &Records, task: &Task, author: &str, now: Timestamp) -> Result<(Task, Sequence), Problem> {
    if task.outcome().is_none() {
        let reason = format!("task {} is not over, and can't be done again before it is", task.id);
        return Err(
            Problem::new(ProblemCode::Conflict, reason).remedy(format!("cancel it: vm-agent task cancel {}", task.id))
        );
    }
    // What a pool did once, any of its agents may do.
    let agent = task.agent.clone().filter(|_| task.pool.is_none());
    if let Some(agent) = agent.as_ref().filter(|agent| !is_known(records, agent, now)) {
        return Err(intent::missing(records, agent));
    }
    // A deadline that has passed would end it unbegun.
    let deadline = task.terms.deadline.filter(|deadline| *deadline > now);
    let terms = Terms { deadline, ..task.terms.clone() };
    let claim = agent.as_ref().and_then(|agent| records.claims.get(agent));
    let id = TaskId::generate();
    let (source, queued) = match &task.source {
        TaskSource::File { name, claim: of, .. } if claim.is_some_and(|claim| claim.id == *of) => {
            (task.source.clone(), format!("task {name} of the file is queued by {author}"))
        }
        _ => {
            let source = TaskSource::Request { author: author.to_owned(), key: None };
            (source, format!("task {id} of {author} is queued"))
        }
    };
    let again = Task {
        pool: task.pool.clone(),
        replay_of: Some(task.id),
        ..Task::new(id, agent, source, task.job.clone(), terms, now)
    };
    let message = format!("{queued}: it does {} again", task.id);
    Ok((again.clone(), accept_all(vec![again], message, vec![Change::DropDead(task.id)])))
}

/// Refuses a task that no runtime could do.
fn check(request: &TaskRequest) -> Result<(), Problem> {
    let TaskRequest { job, terms, key, .. } = request;
    check_work(&job.work).map_err(invalid)?;
    if job.output > OUTPUT_MAX {
        return Err(invalid(format!("`output` is {}; at most {OUTPUT_MAX} can be kept", job.output)));
    }
    if terms.timeout.get().is_zero() {
        return Err(invalid("`timeout` is 0: nothing can be done in no time"));
    }
    if terms.retry.as_ref().is_some_and(|retry| retry.attempts == 0) {
        return Err(invalid("`retry.attempts` is 0; it counts the first attempt as well"));
    }
    let is_bad = |key: &String| key.is_empty() || key.chars().count() > KEY_MAX || key.chars().any(char::is_control);
    if key.as_ref().is_some_and(is_bad) || terms.key.as_ref().is_some_and(is_bad) {
        return Err(invalid(format!("a key has 1 to {KEY_MAX} printable characters")));
    }
    match size(job) {
        size if size > JOB_MAX => {
            let reason = format!("the task has {size} bytes; at most {JOB_MAX} fit into a message to a runtime");
            Err(invalid(reason).remedy("copy what is large into the agent first: vm-agent cp"))
        }
        _ => Ok(()),
    }
}

fn check_work(work: &Work) -> Result<(), &'static str> {
    let is_nothing = |argv: &[String]| argv.first().is_none_or(String::is_empty);
    match work {
        Work::Exec { argv } if is_nothing(argv) => Err("there is nothing to run"),
        Work::Script { interpreter, .. } if is_nothing(interpreter) => Err("nothing is named that runs the script"),
        Work::Script { script, .. } if script.is_empty() => Err("the script is empty"),
        Work::FileRead { path } | Work::FileWrite { path, .. } if path.is_empty() => Err("no file is named"),
        Work::GitClone { url, .. } if url.is_empty() => Err("no repository is named"),
        _ => Ok(()),
    }
}

fn size(job: &Job) -> usize {
    serde_json::to_vec(job).map_or(usize::MAX, |text| text.len())
}

fn invalid(reason: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::Invalid, reason)
}

#[cfg(test)]
mod tests {
    use vm_agent_schemas::fleet::{AgentSpec, DriverName, parse};
    use vm_agent_schemas::ids::{ClaimId, Digest, Incarnation, Nonce};
    use vm_agent_schemas::observe::{Birth, Claim, Proof, Standing};
    use vm_agent_schemas::task::TaskState;
    use vm_agent_schemas::wire::TaskOutcome;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn records() -> Records {
        let text = "agents: {web: {labels: {team: a}}, db: {labels: {team: a}}, ci: {labels: {team: b}}}";
        Records::empty(parse("fleet.yaml", text).unwrap())
    }

    fn request(to: TaskTo) -> TasksRequest {
        let task = TaskRequest { job: Job::exec(["make"]), terms: Terms::default(), id: None, key: None };
        TasksRequest { to, task }
    }

    fn tasks(to: TaskTo) -> Result<Vec<Task>, Problem> {
        requested(&records(), &request(to), "ann", NOW)
    }

    fn names(tasks: &[Task]) -> Vec<&str> {
        tasks.iter().filter_map(|task| task.agent.as_ref()).map(AgentName::as_str).collect()
    }

    fn team(name: &str) -> Selector {
        format!("team={name}").parse().unwrap()
    }

    #[test]
    fn one_task_is_made_for_each_agent_that_is_meant_and_several_are_a_group() {
        let each = tasks(TaskTo::Each(team("a"))).unwrap();
        assert_eq!(names(&each), ["db", "web"]);
        assert!(each[0].group.is_some() && each[0].group == each[1].group);
        let named = tasks(TaskTo::Agents(["web", "ci", "web"].map(|name| name.parse().unwrap()).into())).unwrap();
        assert_eq!(names(&named), ["ci", "web"]);
        let one = tasks(TaskTo::Agents(vec!["ci".parse().unwrap()])).unwrap();
        assert_eq!((names(&one), one[0].group), (vec!["ci"], None));
    }

    #[test]
    fn a_task_for_any_agent_waits_without_one() {
        let pooled = tasks(TaskTo::Any(team("a"))).unwrap();
        let [task] = pooled.as_slice() else { panic!("it is one task") };
        assert_eq!((&task.agent, task.pool.as_ref()), (&None, Some(&team("a"))));
    }

    #[test]
    fn nobody_is_no_receiver() {
        let refused = |to| tasks(to).unwrap_err().code;
        assert_eq!(refused(TaskTo::Any(team("c"))), ProblemCode::NotFound);
        assert_eq!(refused(TaskTo::Each(team("c"))), ProblemCode::NotFound);
        assert_eq!(refused(TaskTo::Agents(vec!["gone".parse().unwrap()])), ProblemCode::NotFound);
        assert_eq!(refused(TaskTo::Agents(Vec::new())), ProblemCode::Invalid);
    }

    #[test]
    fn what_no_runtime_could_do_is_refused() {
        let refused = |change: &dyn Fn(&mut TaskRequest)| {
            let mut request = request(TaskTo::Any(team("a")));
            change(&mut request.task);
            requested(&records(), &request, "ann", NOW).unwrap_err().code
        };
        let cases: [&dyn Fn(&mut TaskRequest); 8] = [
            &|task| task.job = Job::exec::<String>([]),
            &|task| task.job = Job::exec([""]),
            &|task| task.job.output = vm_agent_schemas::units::ByteSize::from_gib(2),
            &|task| task.job.stdin = Some("x".repeat(JOB_MAX)),
            &|task| task.terms.timeout = vm_agent_schemas::units::Span::from_secs(0),
            &|task| task.key = Some(String::new()),
            &|task| task.key = Some("x".repeat(KEY_MAX + 1)),
            &|task| task.terms.key = Some("\n".to_owned()),
        ];
        for case in cases {
            assert_eq!(refused(case), ProblemCode::Invalid);
        }
    }

    #[test]
    fn a_request_is_the_same_when_it_asks_the_same_of_the_same() {
        let (any, each) = (tasks(TaskTo::Any(team("a"))).unwrap(), tasks(TaskTo::Each(team("a"))).unwrap());
        let one = |name: &str| tasks(TaskTo::Agents(vec![name.parse().unwrap()])).unwrap();
        assert!(is_same(&any, &tasks(TaskTo::Any(team("a"))).unwrap()));
        assert!(is_same(&each, &tasks(TaskTo::Each(team("a"))).unwrap()));
        assert!(is_same(&one("web"), &one("web")));
        let other = Task { job: Job::exec(["other"]), ..any[0].clone() };
        for (known, asked) in [
            (&any, &tasks(TaskTo::Any(team("b"))).unwrap()),
            (&any, &each),
            (&each, &any),
            (&one("web"), &one("db")),
            (&one("web"), &each),
            (&any, &vec![other]),
        ] {
            assert!(!is_same(known, asked), "{known:?} {asked:?}");
        }
    }

    #[test]
    fn only_what_has_ended_is_done_again_and_a_deadline_that_has_passed_does_not_stand_against_it() {
        let mut task = tasks(TaskTo::Agents(vec!["web".parse().unwrap()])).unwrap().remove(0);
        task.terms.deadline = Some(NOW);
        assert_eq!(replay(&records(), &task, "bob", NOW).unwrap_err().code, ProblemCode::Conflict);
        task.state = TaskState::Ended { outcome: TaskOutcome::Expired };
        task.dead = Some("too late".to_owned());
        let (again, _) = replay(&records(), &task, "bob", NOW).unwrap();
        assert_eq!((again.replay_of, &again.agent, again.terms.deadline), (Some(task.id), &task.agent, None));
        assert!(again.id != task.id && again.dead.is_none() && again.outcome().is_none());
        task.agent = Some("gone".parse().unwrap());
        assert_eq!(replay(&records(), &task, "bob", NOW).unwrap_err().code, ProblemCode::NotFound);
    }

    #[test]
    fn a_task_of_the_file_that_is_done_again_is_a_run_of_it_while_its_machine_is_there() {
        let mut records = records();
        let agent: AgentName = "web".parse().unwrap();
        let claim = Claim {
            id: ClaimId::generate(),
            fleet: records.fleet.name.clone(),
            agent: agent.clone(),
            driver: DriverName::Qemu,
            instance: records.fleet.name.instance_of(&agent).unwrap(),
            nonce: Nonce::generate(),
            incarnation: Incarnation(1),
            created_at: NOW,
            proof: Proof::Confirmed,
            birth: Birth::of(&AgentSpec::default()),
            standing: Standing::Up,
            protect: false,
            left_in_mass: false,
            asleep: false,
            history: Default::default(),
        };
        let source = TaskSource::File {
            name: "setup".parse().unwrap(),
            digest: Digest::of(b"setup"),
            claim: claim.id,
            due: Some(NOW),
        };
        records.claims.insert(agent, claim);
        let mut task = tasks(TaskTo::Agents(vec!["web".parse().unwrap()])).unwrap().remove(0);
        (task.source, task.state) = (source.clone(), TaskState::Ended { outcome: TaskOutcome::TimedOut });
        assert_eq!(replay(&records, &task, "bob", NOW).unwrap().0.source, source);
        records.claims.clear();
        let by_hand = TaskSource::Request { author: "bob".to_owned(), key: None };
        assert_eq!(replay(&records, &task, "bob", NOW).unwrap().0.source, by_hand);
    }
}
