//! Messages between programs: what programs of this machine send is kept until the hub has it, and what
//! arrives until a program took it.
//!
//! All decisions are made here, in the runtime's loop; the programs' connections only carry requests in and
//! answers out. A message is lent to one program, and given back when that program goes before it took it.

mod known;
mod program;
mod shelf;
mod socket;
mod talk;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{BODY_MAX, MessageRefused, Post, RefusedCode, SUBJECT_MAX, WAITING_MAX};
use vm_agent_schemas::wire::{Address, FromRuntime, MessageRef};

use crate::folder::{Folder, FolderError};
use crate::outgoing::Outgoing;
use known::Known;
pub(crate) use program::main;
use shelf::Shelf;
use socket::{Call, Listening, What};
use talk::{Answer, Request};
pub(crate) use talk::{Letter, SOCKET_VARIABLE};

/// Most messages that wait in either direction.
const BOX_MAX: usize = WAITING_MAX;
/// How many messages may be under way to the hub without an answer.
const FLYING_MAX: usize = 16;
/// How many of the hub's messages wait in memory for room on the disk: as many as the hub has under way.
const AT_THE_DOOR_MAX: usize = 16;
/// The pause after the hub has said that it were too many in too short a time.
const RATE_PAUSE: Duration = Duration::from_secs(1);

/// The messages of this runtime.
#[derive(Debug)]
pub(crate) struct Messages {
    outbox: Shelf,
    inbox: Shelf,
    /// What is told by of those in the inbox.
    headings: BTreeMap<MessageId, Heading>,
    known: Known,
    /// Those that the hub has sent and for which there is no room yet.
    at_the_door: VecDeque<Letter>,
    /// Those that were sent in this session and are not answered.
    flying: BTreeSet<MessageId>,
    /// Until then the hub takes no more.
    paused: Option<Instant>,
    programs: BTreeMap<u64, Program>,
    calls: mpsc::Receiver<Call>,
    /// Nothing where there could be no socket: then no program gets through.
    _listening: Option<Listening>,
}

/// A message that waits to be sent.
#[derive(Debug, Serialize, Deserialize)]
struct Outbound {
    to: Address,
    post: Post,
}

/// What programs choose messages by.
#[derive(Debug)]
struct Heading {
    subject: String,
    in_reply_to: Option<MessageId>,
    /// To which program it is lent.
    lent: Option<u64>,
}

/// A program that is connected.
#[derive(Debug)]
struct Program {
    say: mpsc::UnboundedSender<Answer>,
    /// The message that it has sent.
    sent: Option<MessageId>,
    wish: Option<Wish>,
}

/// What a program wants to receive.
#[derive(Debug)]
struct Wish {
    which: Which,
    follow: bool,
}

#[derive(Debug)]
enum Which {
    Any,
    About(String),
    AnswerTo(MessageId),
}

/// Something for [`Messages`] to do.
#[derive(Debug)]
pub(crate) enum Errand {
    /// A program wants something.
    Called(Call),
    /// More can be sent now.
    Resumed,
}

impl Messages {
    /// What earlier starts left in the folder, and the way in for programs.
    pub(crate) fn load(folder: &Folder) -> Result<Self, FolderError> {
        let (caller, calls) = mpsc::channel(FLYING_MAX);
        let path = socket(folder.path());
        let listening = socket::listen(&path, caller)
            .inspect_err(|error| tracing::error!("programs can't send messages: `{}`: {error}", path.display()));
        Self::at(&folder.messages(), calls, listening.ok())
    }

    fn at(folder: &Path, calls: mpsc::Receiver<Call>, listening: Option<Listening>) -> Result<Self, FolderError> {
        let inbox = Shelf::open(folder.join("inbox"))?;
        let mut headings = BTreeMap::new();
        for message in inbox.all() {
            if let Some(letter) = inbox.get::<Letter>(message)? {
                headings.insert(message, Heading::of(&letter));
            }
        }
        Ok(Self {
            outbox: Shelf::open(folder.join("outbox"))?,
            inbox,
            headings,
            known: Known::load(folder.join("known"))?,
            at_the_door: VecDeque::new(),
            flying: BTreeSet::new(),
            paused: None,
            programs: BTreeMap::new(),
            calls,
            _listening: listening,
        })
    }

    /// The next thing to do. May be dropped and called again without loss.
    pub(crate) async fn next(&mut self) -> Errand {
        let resumed = async {
            match self.paused {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(call) = self.calls.recv() => Errand::Called(call),
            () = resumed => Errand::Resumed,
        }
    }

    /// Does it.
    pub(crate) fn run(&mut self, errand: Errand, outgoing: Option<&Outgoing>) {
        match errand {
            Errand::Resumed => {
                self.paused = None;
                self.send(outgoing);
            }
            Errand::Called(Call { program, what: What::Come(say) }) => {
                self.programs.insert(program, Program { say, sent: None, wish: None });
            }
            Errand::Called(Call { program, what: What::Gone }) => {
                self.programs.remove(&program);
                for heading in self.headings.values_mut().filter(|heading| heading.lent == Some(program)) {
                    heading.lent = None;
                }
                self.give();
            }
            Errand::Called(Call { program, what: What::Asked(request) }) => self.asked(program, request, outgoing),
        }
    }

    /// A session begins: everything that the hub has not answered goes out again.
    pub(crate) fn begin(&mut self, outgoing: &Outgoing) {
        self.flying.clear();
        self.at_the_door.clear();
        self.send(Some(outgoing));
    }

    /// The hub has a message.
    pub(crate) fn accepted(&mut self, message: MessageId, outgoing: &Outgoing) {
        self.answered(message, Answer::Accepted { message }, outgoing);
    }

    /// The hub does not want a message: now, or at all.
    pub(crate) fn refused(&mut self, refused: MessageRefused, outgoing: &Outgoing) {
        let MessageRefused { message, code, reason } = refused;
        if code == RefusedCode::Rate {
            self.flying.remove(&message);
            self.paused = Some(Instant::now() + RATE_PAUSE);
            return;
        }
        tracing::warn!("the message {message} goes nowhere: {reason}");
        self.answered(message, Answer::Refused { message, code, reason }, outgoing);
    }

    /// A message has come. It is taken when it is kept; as long as there is no room, the hub is not answered.
    pub(crate) fn come(&mut self, letter: Letter, outgoing: &Outgoing) {
        if self.at_the_door.len() < AT_THE_DOOR_MAX {
            self.at_the_door.push_back(letter);
        }
        self.let_in(Some(outgoing));
        self.give();
    }

    fn asked(&mut self, program: u64, request: Request, outgoing: Option<&Outgoing>) {
        match request {
            Request::Send { to, post, wait } => match self.accept(to, post) {
                Ok(message) => {
                    if let Some(program) = self.programs.get_mut(&program) {
                        program.sent = Some(message);
                        program.wish = wait.then_some(Wish { which: Which::AnswerTo(message), follow: true });
                        program.tell(Answer::Kept { message });
                    }
                    self.send(outgoing);
                }
                Err(reason) => self.tell(program, Answer::Error { reason }),
            },
            Request::Receive { subject, follow } => {
                if let Some(program) = self.programs.get_mut(&program) {
                    program.wish = Some(Wish { which: subject.map_or(Which::Any, Which::About), follow });
                }
                self.give();
            }
            Request::Taken { message } => {
                if self.headings.get(&message).is_some_and(|heading| heading.lent == Some(program)) {
                    self.forget(message);
                    self.let_in(outgoing);
                }
                self.give();
            }
        }
    }

    /// Keeps a message that is to be sent. The error is a sentence for the program.
    fn accept(&mut self, to: Address, post: Post) -> Result<MessageId, String> {
        check(&post)?;
        if self.outbox.len() >= BOX_MAX {
            return Err(format!("{BOX_MAX} messages wait to be sent already; try again when the hub has taken some"));
        }
        let message = MessageId::generate();
        self.outbox.put(message, &Outbound { to, post }).map_err(|error| crate::chain(&error))?;
        Ok(message)
    }

    /// Sends what waits, a few at a time.
    fn send(&mut self, outgoing: Option<&Outgoing>) {
        let Some(outgoing) = outgoing.filter(|_| self.paused.is_none()) else { return };
        let due: Vec<MessageId> = self.outbox.all().filter(|message| !self.flying.contains(message)).collect();
        for message in due.into_iter().take(FLYING_MAX.saturating_sub(self.flying.len())) {
            match self.outbox.get::<Outbound>(message) {
                Ok(Some(Outbound { to, post })) => {
                    self.flying.insert(message);
                    outgoing.post(message, to, FromRuntime::Message(post));
                }
                // It can't be sent, now or later.
                Ok(None) => log(self.outbox.remove(message)),
                Err(error) => {
                    tracing::error!("a message is lost: {}", crate::chain(&error));
                    log(self.outbox.remove(message));
                }
            }
        }
    }

    fn answered(&mut self, message: MessageId, answer: Answer, outgoing: &Outgoing) {
        self.flying.remove(&message);
        // Should it stay on the disk, it is sent again some day, and known by its id.
        log(self.outbox.remove(message));
        if let Some(program) = self.programs.values().find(|program| program.sent == Some(message)) {
            program.tell(answer);
        }
        self.send(Some(outgoing));
    }

    /// Keeps messages that have come, as far as there is room, and tells the hub.
    fn let_in(&mut self, outgoing: Option<&Outgoing>) {
        while let Some(letter) = self.at_the_door.pop_front() {
            let message = letter.id;
            if !self.inbox.holds(message) && !self.known.holds(message) {
                let full = self.inbox.len() >= BOX_MAX;
                if full || self.inbox.put(message, &letter).inspect_err(complain).is_err() {
                    return self.at_the_door.push_front(letter);
                }
                self.headings.insert(message, Heading::of(&letter));
            }
            if let Some(outgoing) = outgoing {
                outgoing.say(FromRuntime::MessageTaken(MessageRef { message }));
            }
        }
    }

    /// Gives messages to the programs that wait for them, one to each.
    fn give(&mut self) {
        let waiting: Vec<u64> = self.programs.iter().filter(|(_, it)| it.wish.is_some()).map(|it| *it.0).collect();
        for number in waiting {
            if self.headings.values().any(|heading| heading.lent == Some(number)) {
                continue;
            }
            let found = self.inbox.all().find(|message| self.suits(*message, number));
            let letter =
                found.and_then(|message| self.inbox.get::<Letter>(message).inspect_err(complain).ok().flatten());
            match letter {
                Some(letter) => {
                    if let Some(heading) = self.headings.get_mut(&letter.id) {
                        heading.lent = Some(number);
                    }
                    self.tell(number, Answer::Message { message: letter });
                }
                None => self.tell_of_nothing(number),
            }
        }
    }

    /// Whether a message is what a program wants. An answer that its sender waits for is for that one alone.
    fn suits(&self, message: MessageId, number: u64) -> bool {
        let Some(heading) = self.headings.get(&message).filter(|heading| heading.lent.is_none()) else { return false };
        let answers = |wish: &Wish| matches!(wish.which, Which::AnswerTo(sent) if heading.in_reply_to == Some(sent));
        let Some(wish) = self.programs.get(&number).and_then(|program| program.wish.as_ref()) else { return false };
        match &wish.which {
            Which::AnswerTo(_) => answers(wish),
            Which::Any => !self.programs.values().any(|program| program.wish.as_ref().is_some_and(answers)),
            Which::About(subject) => {
                heading.subject == *subject
                    && !self.programs.values().any(|program| program.wish.as_ref().is_some_and(answers))
            }
        }
    }

    fn tell_of_nothing(&mut self, number: u64) {
        if let Some(program) = self.programs.get_mut(&number)
            && program.wish.take_if(|wish| !wish.follow).is_some()
        {
            program.tell(Answer::Nothing);
        }
    }

    fn tell(&self, number: u64, answer: Answer) {
        if let Some(program) = self.programs.get(&number) {
            program.tell(answer);
        }
    }

    /// Forgets a message that a program took, but for its id.
    fn forget(&mut self, message: MessageId) {
        self.headings.remove(&message);
        log(self.known.add(message));
        log(self.inbox.remove(message));
    }
}

impl Heading {
    fn of(letter: &Letter) -> Self {
        Self { subject: letter.post.subject.clone(), in_reply_to: letter.post.in_reply_to, lent: None }
    }
}

impl Program {
    fn tell(&self, answer: Answer) {
        // It may be gone; then that is the next thing that is heard of it.
        let _ = self.say.send(answer);
    }
}

/// The path of the socket of the runtime with this folder.
pub(crate) fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

/// Whether this can be a message at all. The error is a sentence for the program.
fn check(post: &Post) -> Result<(), String> {
    let length = post.subject.chars().count();
    if length == 0 || length > SUBJECT_MAX {
        return Err(format!("the subject has {length} characters; it needs one and may have {SUBJECT_MAX}"));
    }
    if post.subject.chars().any(char::is_control) {
        return Err("the subject holds a control character; write it as plain text in one line".to_owned());
    }
    let body = post.body.to_string().len();
    if body > BODY_MAX {
        return Err(format!("the body is {body} bytes as JSON; it may be {BODY_MAX}"));
    }
    Ok(())
}

fn complain(error: &FolderError) {
    tracing::error!("{}", crate::chain(error));
}

fn log(result: Result<(), FolderError>) {
    if let Err(error) = result {
        complain(&error);
    }
}

#[cfg(test)]
mod tests;
