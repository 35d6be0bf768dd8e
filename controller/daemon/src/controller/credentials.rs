//! Credentials: the tokens of the API, the keys of runtimes, and who did what with them.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use vm_agent_schemas::api::{AuditEntry, NewToken, Problem, ProblemCode, TokenRequest, TokenRotation};
use vm_agent_schemas::credential::{ApiToken, Role};
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::ids::{Digest, Secret, TokenId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::units::Span;
use vm_agent_store as store;

use super::{Actor, Controller};
use crate::reconciler::Chain;

/// How long a runtime may take to make itself another key. It takes milliseconds, unless its machine is very busy.
const ROTATION_LIMIT: Duration = Duration::from_secs(10);

/// How often a token is looked at while something that it opened goes on, at the least: a clock that was set
/// changes when it ends.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

impl Controller {
    /// Whose token this is.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn authenticate(&self, token: &str) -> Result<Option<Actor>, Problem> {
        // Looked up by its digest: how long that takes says nothing about how near a guess is.
        let digest = Secret::from_text(token).digest();
        let known = self.working(digest).await?;
        Ok(known.map(|token| Actor { name: token.name, role: token.role }))
    }

    /// Waits until the token with this digest works no more.
    pub(crate) async fn token_ends(&self, digest: &Digest) {
        let mut changes = self.core.tokens.subscribe();
        loop {
            // Marked before it is read: what comes in between is news again.
            changes.borrow_and_update();
            let pause = match self.working(digest.clone()).await {
                Ok(Some(token)) => token.expires_at.map_or(LOOK_AGAIN, |end| left(end).min(LOOK_AGAIN)),
                Ok(None) => return,
                // That the store does not answer ends no token.
                Err(_) => LOOK_AGAIN,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// The token with this digest, if it works.
    async fn working(&self, digest: Digest) -> Result<Option<ApiToken>, Problem> {
        let known = self.read(move |conn| store::tokens::find(conn, &digest)).await?;
        Ok(known.filter(|token| token.expires_at.is_none_or(|end| Timestamp::now() < end)))
    }

    /// Makes a token for the API over TCP. It is shown this one time.
    ///
    /// # Errors
    /// When the name is empty, or the store fails.
    pub async fn create_token(&self, request: TokenRequest, _actor: &Actor) -> Result<NewToken, Problem> {
        let name = request.name.trim().to_owned();
        if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
            return Err(Problem::new(ProblemCode::Invalid, "a token's name has 1 to 100 printable characters"));
        }
        let new = new_token(name, request.role, request.lasting, Timestamp::now());
        let stored = new.token.clone();
        self.write(move |conn| store::tokens::put(conn, &stored)).await?;
        Ok(new)
    }

    /// Makes a token that takes the place of another: of the same name and role, and working as long as that
    /// was to. The old one ends after the overlap, if it does not end before.
    ///
    /// # Errors
    /// When there is none with that id that still works, or the store fails.
    pub async fn rotate_token(&self, id: TokenId, request: TokenRotation) -> Result<NewToken, Problem> {
        let now = Timestamp::now();
        let old = self.tokens().await?.into_iter().find(|token| token.id == id);
        let old = old.filter(|token| token.expires_at.is_none_or(|end| now < end)).ok_or_else(|| no_token(id))?;
        let lasting = old.expires_at.map(|end| Span::from(end.duration_since(old.created_at).unsigned_abs()));
        let overlap = request.overlap.unwrap_or(TokenRotation::OVERLAP);
        let ends = [now.checked_add(overlap.get()).ok(), old.expires_at].into_iter().flatten().min();
        let new = new_token(old.name, old.role, lasting, now);
        let stored = new.token.clone();
        // In one transaction, so that there is never a time without either.
        let found = self
            .write(move |conn| {
                store::tokens::put(conn, &stored)?;
                ends.map_or(Ok(true), |end| store::tokens::end_at(conn, id, end))
            })
            .await?;
        self.core.tokens.send_replace(());
        found.then_some(new).ok_or_else(|| no_token(id))
    }

    /// All tokens, without their secrets.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn tokens(&self) -> Result<Vec<ApiToken>, Problem> {
        self.read(store::tokens::all).await
    }

    /// Ends a token.
    ///
    /// # Errors
    /// When there is none with that id, or the store fails.
    pub async fn revoke_token(&self, id: TokenId, _actor: &Actor) -> Result<(), Problem> {
        let found = self.write(move |conn| store::tokens::remove(conn, id)).await?;
        self.core.tokens.send_replace(());
        found.then_some(()).ok_or_else(|| no_token(id))
    }

    /// Has an agent's runtime make itself another key, and waits until that is stored. Its session goes on.
    ///
    /// # Errors
    /// When there is no such agent, when its runtime is not connected, and when it does not answer.
    pub async fn rotate_key(&self, name: &AgentName) -> Result<(), Problem> {
        self.known(name)?;
        if !self.core.hub.sessions().await.iter().any(|session| session.agent == *name) {
            let reason = format!("the runtime of {name} is not connected, and only it can make itself another key");
            return Err(Problem::new(ProblemCode::Offline, reason));
        }
        let mut events = self.subscribe();
        self.core.hub.rotate(name.clone());
        let rotated = async {
            loop {
                match events.recv().await {
                    Ok(event) if event.kind == EventKind::KeyRotated && event.agent.as_ref() == Some(name) => return,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    // The controller goes down: nothing comes any more.
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::time::timeout(ROTATION_LIMIT, rotated).await.map_err(|_| {
            let reason = format!("the runtime of {name} made no other key within {} s", ROTATION_LIMIT.as_secs());
            Problem::new(ProblemCode::Unavailable, reason)
                .remedy(format!("see whether it is well: vm-agent why {name}"))
        })
    }

    /// Requests of the audit after `after`, the oldest first; without `after` the latest.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn audited(&self, after: Option<u64>, limit: u32) -> Result<Vec<AuditEntry>, Problem> {
        self.read(move |conn| match after {
            Some(seq) => store::audit::since(conn, seq, limit),
            None => store::audit::latest(conn, limit),
        })
        .await
    }

    /// Writes one line of the audit: who asked for what, and the answer's status.
    pub async fn audit(&self, actor: &Actor, method: &str, path: &str, status: u16, at: Timestamp) {
        let (actor, method, path) = (actor.name.clone(), method.to_owned(), path.to_owned());
        let written = self
            .core
            .ledger
            .store()
            .write(move |conn| store::audit::append(conn, at, &actor, &method, &path, status))
            .await;
        if let Err(error) = written {
            tracing::error!(error = %Chain(&error), "A line of the audit could not be written");
        }
    }
}

fn new_token(name: String, role: Role, lasting: Option<Span>, now: Timestamp) -> NewToken {
    let secret = Secret::generate();
    let expires_at = lasting.and_then(|lasting| now.checked_add(lasting.get()).ok());
    let token = ApiToken { id: TokenId::generate(), name, digest: secret.digest(), role, created_at: now, expires_at };
    NewToken { token, secret }
}

/// How long it is until then, and a moment more.
fn left(end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default() + Duration::from_millis(1)
}

fn no_token(id: TokenId) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("there is no token {id}"))
}
