//! What was done: all that invariants judge by.

use std::sync::Arc;

use jiff::Timestamp;
use vm_agent_daemon::engine::records::{Change, Records};
use vm_agent_hub::{Directory, Record};
use vm_agent_plan::Inputs;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::ids::{Boot, ClaimId, Epoch, Incarnation, MessageId, Nonce, OperationId};
use vm_agent_schemas::message::Message;
use vm_agent_schemas::names::{AgentName, InstanceName};
use vm_agent_schemas::observe::Action;
use vm_agent_schemas::plan::{ApprovalRequest, Plan};
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::{RefusalCode, TaskRef};
use vm_agent_store::output::OutputRecord;

/// Who had something written down.
#[derive(Debug, Clone)]
pub enum By {
    /// A pass, by what it had seen.
    Pass(Arc<Inputs>),
    /// The end of a step.
    Step,
    /// A person.
    Person,
    /// Somebody who tells what happened.
    Teller,
}

/// Something that was done, once it was.
#[derive(Debug, Clone)]
pub enum Deed {
    /// Changes are durable.
    Recorded {
        /// Who.
        by: By,
        /// The records before.
        before: Arc<Records>,
        /// And after.
        after: Arc<Records>,
        /// What changed.
        changes: Arc<Vec<Change>>,
        /// When.
        at: Timestamp,
    },
    /// Records of the hub are durable.
    Stored(Vec<Record>),
    /// A driver is asked for something that changes an instance.
    Called {
        /// The driver.
        driver: DriverName,
        /// The step.
        operation: OperationId,
        /// The agent.
        agent: AgentName,
        /// What it is asked for.
        action: Action,
        /// On which instance.
        instance: InstanceName,
        /// With which nonce.
        nonce: Nonce,
        /// What that driver still does on that instance for whoever asked before, although it is asked
        /// by nobody any more.
        still: bool,
        /// The records.
        records: Arc<Records>,
    },
    /// Nobody waits for that call any more.
    CallOver(OperationId),
    /// A machine exists.
    Made {
        /// By which driver.
        driver: DriverName,
        /// Its name.
        instance: InstanceName,
        /// Its nonce.
        nonce: Nonce,
        /// The agent that it was made for.
        agent: AgentName,
        /// Who else is there for that agent, by driver.
        others: Vec<DriverName>,
    },
    /// A session was accepted.
    Welcomed {
        /// Who.
        agent: AgentName,
        /// Which life of its machine.
        incarnation: Incarnation,
        /// Which start of the runtime.
        boot: Boot,
        /// Which session.
        epoch: Epoch,
        /// The records.
        records: Arc<Records>,
    },
    /// A runtime is sent a task, which stands so on the disk.
    Ordered {
        /// As it is stored, if it is.
        stored: Option<Box<Task>>,
        /// The claim of its agent.
        claim: Option<ClaimId>,
    },
    /// A runtime runs a task.
    Ran {
        /// Which attempt.
        task: TaskRef,
        /// The other attempts of it that run.
        others: Vec<TaskRef>,
    },
    /// A runtime is told that an attempt is settled; so the task stands on the disk.
    Acknowledged {
        /// The attempt.
        task: TaskRef,
        /// The task.
        stored: Option<Box<Task>>,
    },
    /// The hub means to store this. Memory is as far as that, and the disk is not.
    Meant {
        /// What.
        records: Vec<Record>,
        /// When.
        at: Timestamp,
    },
    /// What the hub meant to store was not.
    NotStored(Vec<Record>),
    /// The end of an attempt is durable.
    AttemptOver {
        /// Which.
        task: TaskRef,
        /// As it is stored.
        stored: Box<Task>,
        /// How much it has written to each channel, where anybody still knows.
        written: Option<[u64; 2]>,
        /// What is durable of its output.
        output: Vec<OutputRecord>,
    },
    /// The hub was told that a task is to be delivered.
    Submitted(Box<Task>),
    /// The hub was told who is declared.
    Declared(Directory),
    /// A runtime is told that its message is accepted; so it stands on the disk.
    MessageAccepted {
        /// Which.
        message: MessageId,
        /// For each receiver.
        stored: Vec<Message>,
    },
    /// A program was given a message, in this machine.
    Given(Box<Message>, Nonce),
    /// A runtime that had joined was refused, in its machine.
    Refused(RefusalCode),
    /// A life of the controller began.
    Began {
        /// What the life before left in memory.
        left: Option<Arc<Records>>,
        /// What this one found.
        found: Arc<Records>,
    },
    /// A pass came to what may begin.
    Acted {
        /// What it saw.
        inputs: Arc<Inputs>,
        /// What it planned.
        plan: Arc<Plan>,
    },
    /// A person said yes to something that was shown.
    Approved {
        /// To what.
        request: ApprovalRequest,
        /// The records.
        records: Arc<Records>,
    },
    /// The world came to rest, and nothing happens any more by itself.
    Rest(Rest),
}

/// What is left when the world has come to rest.
#[derive(Debug, Clone)]
pub struct Rest {
    /// What is seen.
    pub inputs: Arc<Inputs>,
    /// What is planned.
    pub plan: Arc<Plan>,
    /// The tasks that are not over.
    pub unfinished: Vec<Task>,
    /// The messages that wait for their receivers.
    pub waiting: Vec<Message>,
    /// The agents whose programs wait for word of a message that they sent.
    pub unsent: Vec<AgentName>,
    /// Every machine that was made for an agent and is there, with its nonce.
    pub machines: Vec<(InstanceName, Nonce)>,
}
