//! Webhooks: whoever the file names is told of events, in order, each until it is taken.
//!
//! A *courier* for each webhook reads events from the store behind its cursor, and the cursor is stored
//! after an event was taken or given up. So nothing is missed over a restart, and what was taken just
//! before a crash comes a second time, under the same id.

mod outages;
mod request;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Client;
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;
use vm_agent_schemas::event::{Event, EventKind, NewEvent};
use vm_agent_schemas::fleet::Webhook;
use vm_agent_schemas::ids::{Digest, Secret};
use vm_agent_store as store;
use vm_agent_store::StoreError;

use crate::core::Core;
use crate::engine::file::writable;
use crate::engine::records::Change;
use crate::reconciler::Chain;
pub(crate) use outages::Outages;
use request::{Answer, GIVEN_UP_AFTER, pause, request};

/// How long a receiver may take for its answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// How many attempts in a row have to fail until people are told: what passes by itself is none of theirs.
const FAILURES_TOLD: u32 = 3;

/// The events by which a file comes into force.
const IN_FORCE: [EventKind; 2] = [EventKind::FleetApplied, EventKind::FleetRolledBack];

/// Events that are read at a time.
const PAGE: u32 = 100;

/// Keeps a courier for each webhook of the accepted file, until it is dropped.
pub(crate) async fn run(core: Arc<Core>) {
    let client = match client() {
        Ok(client) => client,
        Err(error) => return tracing::error!(error = %Chain(&error), "Webhooks can't be called"),
    };
    let mut couriers: BTreeMap<String, (Webhook, AbortOnDropHandle<()>)> = BTreeMap::new();
    let mut events = core.ledger.subscribe();
    loop {
        let records = core.ledger.records();
        let wanted = &records.fleet.webhooks;
        couriers.retain(|_, (webhook, _)| wanted.contains(webhook));
        for webhook in wanted {
            let begin = || {
                let courier = Courier { core: Arc::clone(&core), client: client.clone(), webhook: webhook.clone() };
                (webhook.clone(), AbortOnDropHandle::new(tokio::spawn(courier.run())))
            };
            couriers.entry(webhook.url.to_string()).or_insert_with(begin);
        }
        drop(records);
        // A file that comes into force tells so; of those that were missed the latest is the one that counts.
        loop {
            match events.recv().await {
                Ok(event) if !IN_FORCE.contains(&event.kind) => {}
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

/// A client that follows no redirect: who was shown in the file is who is told.
fn client() -> Result<Client, reqwest::Error> {
    // Fails when somebody has chosen one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().timeout(DEADLINE).build()
}

/// Who tells one webhook.
struct Courier {
    core: Arc<Core>,
    client: Client,
    webhook: Webhook,
}

impl Courier {
    async fn run(self) {
        let mut failures = 0;
        while let Err(error) = self.serve().await {
            failures += 1;
            tracing::error!(url = %self.webhook.url, error = %Chain(&error), "The events of a webhook can't be read");
            tokio::time::sleep(pause(failures)).await;
        }
    }

    /// Goes on as long as the store does.
    async fn serve(&self) -> Result<(), StoreError> {
        let mut news = self.core.ledger.subscribe();
        let mut cursor = self.begin().await?;
        loop {
            let events =
                self.core.ledger.store().read(move |conn| store::events::since(conn, cursor, None, PAGE)).await?;
            let Some(last) = events.last().map(|event| event.seq) else {
                // Lagging means that there is something to read as well.
                if matches!(news.recv().await, Err(broadcast::error::RecvError::Closed)) {
                    return Ok(());
                }
                continue;
            };
            for event in events.iter().filter(|event| self.is_wanted(event)) {
                self.deliver(event).await;
                self.advance(event.seq).await?;
            }
            self.advance(last).await?;
            cursor = last;
        }
    }

    fn is_wanted(&self, event: &Event) -> bool {
        self.webhook.events.is_empty() || self.webhook.events.contains(&event.kind)
    }

    /// Where its cursor stands in the store.
    fn key(&self) -> String {
        format!("webhook {}", Digest::of(self.webhook.url.to_string().as_bytes()))
    }

    /// The event that it was told of last. A new webhook is told of what comes after the file that names it, not of
    /// what was before.
    async fn begin(&self) -> Result<u64, StoreError> {
        let key = self.key();
        self.core
            .ledger
            .store()
            .write(move |conn| {
                if let Some(cursor) = store::meta::get_json(conn, &key)? {
                    return Ok(cursor);
                }
                let named = store::events::latest_of(conn, IN_FORCE)?.map_or(0, |event| event.seq);
                store::meta::set_json(conn, &key, &named)?;
                Ok(named)
            })
            .await
    }

    async fn advance(&self, seq: u64) -> Result<(), StoreError> {
        let key = self.key();
        self.core.ledger.store().write(move |conn| store::meta::set_json(conn, &key, &seq)).await
    }

    /// Tells of one event until it is taken, refused for good, or too old.
    async fn deliver(&self, event: &Event) {
        let mut failures = 0;
        loop {
            let problem = match self.attempt(event).await {
                Ok(Answer::Taken) => {
                    self.core.webhooks.end(&self.webhook);
                    return self.core.metrics.webhook("taken");
                }
                Ok(Answer::Gone) => {
                    self.core.metrics.webhook("given_up");
                    return self.give_up(event, "the receiver says that it is gone for good (410)").await;
                }
                Ok(Answer::Failed(status)) => format!("the receiver answered {status}"),
                Err(problem) => problem,
            };
            failures += 1;
            self.core.metrics.webhook("failed");
            tracing::warn!(url = %self.webhook.url, event.seq, failures, "A webhook could not be told: {problem}");
            if failures >= FAILURES_TOLD {
                self.complain(&problem).await;
            }
            let age = Duration::try_from(Timestamp::now().duration_since(event.at)).unwrap_or_default();
            if age > GIVEN_UP_AFTER {
                self.core.metrics.webhook("given_up");
                return self.give_up(event, &problem).await;
            }
            tokio::time::sleep(pause(failures)).await;
        }
    }

    async fn attempt(&self, event: &Event) -> Result<Answer, String> {
        let secret = self.secret().await?;
        let records = self.core.ledger.records();
        let fleet = records.owner.clone().unwrap_or_default();
        let request = request(&fleet, event, secret.as_ref(), Timestamp::now());
        let mut call = self.client.post(self.webhook.url.url().clone()).body(request.body);
        for (name, value) in request.headers {
            call = call.header(name, value);
        }
        let answer = call.send().await.map_err(|error| Chain(&error.without_url()).to_string())?;
        Ok(Answer::of(answer.status().as_u16()))
    }

    /// The secret is read anew for each attempt: one that was changed at its source is in force at once,
    /// and it lies in memory no longer than needed.
    async fn secret(&self) -> Result<Option<Secret>, String> {
        let Some(source) = &self.webhook.secret else { return Ok(None) };
        const NAME: &str = "webhook";
        let writable = Arc::new(writable(&self.core.ledger.records(), Timestamp::now()));
        let sources = BTreeMap::from([(NAME.to_owned(), source.clone())]);
        let read = self.core.configuring.reader.resolve(&sources, &writable).await;
        read.map(|mut secrets| secrets.remove(NAME)).map_err(|error| Chain(&error).to_string())
    }

    async fn give_up(&self, event: &Event, problem: &str) {
        // That a webhook was not told of a webhook that was not told helps nobody, and has no end.
        if event.kind == EventKind::WebhookFailed {
            return;
        }
        let message = format!("{} was not told of event {} ({}): {problem}", self.webhook.url, event.seq, event.kind);
        self.record(message).await;
    }

    /// Tells people that it can't be told, once for each such time.
    async fn complain(&self, problem: &str) {
        if self.core.webhooks.begin(&self.webhook, problem) {
            let message = format!("{} can't be told of events, which wait: {problem}", self.webhook.url);
            self.record(message).await;
        }
    }

    async fn record(&self, message: String) {
        let change = Change::Event(NewEvent::fleet(EventKind::WebhookFailed, message));
        if let Err(error) = self.core.ledger.record(vec![change], Timestamp::now()).await {
            tracing::error!(error = %Chain(&error), "An event could not be recorded");
        }
    }
}
