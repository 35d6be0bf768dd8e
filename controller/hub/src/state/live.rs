//! What goes on in a session: health, log, tasks and streams.

use jiff::Timestamp;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{Address, Envelope, Frame, FromRuntime, LogLines, MessageRef};

use super::handshake::Refusal;
use super::reports::{check_configured, check_health, services_differ};
use super::sessions::check_sender;
use super::streams::Owner;
use super::{ConnId, Effect, Hub, Inbound, Notice};
use crate::stream::StreamEvent;

impl Hub {
    /// A frame came in a session.
    pub(super) fn heard(&mut self, conn: ConnId, inbound: Inbound, now: Timestamp) -> Result<(), Refusal> {
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        let agent = session.agent.clone();
        if session.heard(now) {
            self.notify(Notice::SessionHeard { agent: agent.clone() });
        }
        match inbound {
            Inbound::Invalid(why) => Err(Refusal::protocol(why)),
            Inbound::Data(frame) => self.output(conn, agent, frame),
            Inbound::Message(envelope) => {
                check_sender(&envelope.from, &agent)?;
                self.said(conn, agent, envelope, now)
            }
        }
    }

    fn said(
        &mut self,
        conn: ConnId,
        agent: AgentName,
        envelope: Envelope<FromRuntime>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let Envelope { id, to, body, .. } = envelope;
        if to != Address::Host && !matches!(body, FromRuntime::Message(_)) {
            return Err(Refusal::protocol(format!(
                "what is no message between programs is for the host, not for `{to}`"
            )));
        }
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        match body {
            FromRuntime::Hello(_) | FromRuntime::Proof(_) => {
                return Err(Refusal::protocol("the handshake is over: a session has one hello"));
            }
            FromRuntime::Health(report) => {
                check_health(&report)?;
                let news = services_differ(session.health.replace(report.clone()).as_ref(), &report);
                self.notify(Notice::Health { agent: agent.clone(), report });
                if news {
                    self.notify(Notice::Activity { agent });
                }
            }
            FromRuntime::Log(log) => {
                if let Some(LogLines { lines, dropped }) = session.log.pass(log, now) {
                    self.notify(Notice::Log { agent, lines, dropped });
                }
            }
            FromRuntime::Configured(configured) => {
                check_configured(&configured)?;
                session.told = true;
                session.configured.clone_from(&configured.digest);
                session.problems.clone_from(&configured.problems);
                let notice = Notice::Configured {
                    agent: agent.clone(),
                    digest: configured.digest,
                    problems: configured.problems,
                };
                self.notify(notice);
                self.look_at(&agent, now);
                self.deliver_messages(&agent);
            }
            FromRuntime::TaskStarted(task) => self.task_started(conn, agent, task, now),
            FromRuntime::TaskEnded(ended) => self.task_ended(conn, &agent, ended, now),
            FromRuntime::StreamOpened(opened) => self.stream_opened(conn, opened)?,
            FromRuntime::StreamEnded(ended) => self.stream_ended(conn, &agent, ended, now)?,
            FromRuntime::StreamTaken(taken) => self.stream_input_taken(conn, taken)?,
            FromRuntime::Message(post) => self.message_sent(conn, &agent, id, to, post, now),
            FromRuntime::MessageTaken(MessageRef { message }) => self.message_taken(&agent, message, now),
            FromRuntime::Rotated(rotated) => self.rotated(conn, &agent, rotated)?,
            FromRuntime::UpgradeFailed(failed) => self.upgrade_failed(conn, &agent, failed, now)?,
            FromRuntime::Evidence(evidence) => self.evidence(conn, evidence)?,
        }
        Ok(())
    }

    fn output(&mut self, conn: ConnId, agent: AgentName, frame: Frame) -> Result<(), Refusal> {
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        if let Some(Owner::Task(task)) = session.streams.owner(frame.stream)? {
            return self.task_output(conn, agent, task, &frame);
        }
        if let Some(Owner::Client(key)) = session.streams.output(&frame)? {
            let Frame { channel, offset, end, data, .. } = frame;
            self.effects.push(Effect::Client { key, event: StreamEvent::Data { channel, offset, end, data } });
        }
        Ok(())
    }
}
