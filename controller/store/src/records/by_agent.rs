//! Tables that hold at most one record for each agent.

use rusqlite::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vm_agent_schemas::names::AgentName;

use super::{json, row, rows};
use crate::StoreError;

/// Such a table: columns `agent` and `record`.
pub(super) struct ByAgent(pub(super) &'static str);

impl ByAgent {
    pub(super) fn put<T: Serialize>(&self, conn: &Connection, agent: &AgentName, record: &T) -> Result<(), StoreError> {
        let sql = format!("INSERT OR REPLACE INTO {} (agent, record) VALUES (?1, ?2)", self.0);
        conn.prepare_cached(&sql)?.execute((agent.as_str(), json::encode(self.0, record)?))?;
        Ok(())
    }

    pub(super) fn all<T: DeserializeOwned>(&self, conn: &Connection) -> Result<Vec<T>, StoreError> {
        let sql = format!("SELECT record FROM {} ORDER BY agent", self.0);
        rows(conn, &sql, (), |row| json::decode(self.0, row))
    }

    pub(super) fn get<T: DeserializeOwned>(
        &self,
        conn: &Connection,
        agent: &AgentName,
    ) -> Result<Option<T>, StoreError> {
        let sql = format!("SELECT record FROM {} WHERE agent = ?1", self.0);
        row(conn, &sql, [agent.as_str()], |row| json::decode(self.0, row))
    }

    pub(super) fn remove(&self, conn: &Connection, agent: &AgentName) -> Result<bool, StoreError> {
        let sql = format!("DELETE FROM {} WHERE agent = ?1", self.0);
        Ok(conn.prepare_cached(&sql)?.execute([agent.as_str()])? > 0)
    }
}
