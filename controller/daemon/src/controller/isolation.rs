//! Whether agents run where they should.

use std::sync::Arc;

use vm_agent_schemas::api::{Problem, ProblemCode};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::verification::Verification;

use super::Controller;
use crate::verifying::ask_now;

impl Controller {
    /// Asks an agent's runtime where it runs, and its machine beside it, and says what both come to. A runtime that
    /// runs elsewhere is refused from then on.
    ///
    /// # Errors
    /// When there is no such agent.
    pub async fn verify(&self, name: &AgentName) -> Result<Verification, Problem> {
        self.known(name)?;
        let (core, agent) = (Arc::clone(&self.core), name.clone());
        // Whoever asked may go away; what follows has to follow.
        let asked = tokio::spawn(async move { ask_now(&core, &agent).await }).await;
        asked.map_err(|error| Problem::new(ProblemCode::Internal, error.to_string()))
    }
}
