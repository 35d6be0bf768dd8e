//! The database's schema, as numbered steps. A step that has been released never changes; what
//! comes later is a new one.

use rusqlite::{Connection, TransactionBehavior};

use crate::StoreError;

/// The steps in order: after the n-th, counted from 1, `user_version` is n.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_initial.sql"),
    include_str!("../migrations/0002_intent_over_time.sql"),
    include_str!("../migrations/0003_tasks_and_messages.sql"),
    include_str!("../migrations/0004_snapshots.sql"),
];

/// Brings a database to the latest schema. Each step is one transaction with its number, so that a
/// crash between or within steps leaves a database from which this goes on.
pub(crate) fn migrate(conn: &mut Connection) -> Result<(), StoreError> {
    let (found, known) = (version(conn)?, MIGRATIONS.len());
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    migrate_to(conn, known)
}

/// Brings a database to a schema.
pub(crate) fn migrate_to(conn: &mut Connection, wanted: usize) -> Result<(), StoreError> {
    let found = version(conn)?;
    for (before, step) in MIGRATIONS.iter().enumerate().take(wanted).skip(found) {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(step)?;
        tx.pragma_update(None, "user_version", before + 1)?;
        tx.commit()?;
    }
    Ok(())
}

fn version(conn: &Connection) -> rusqlite::Result<usize> {
    conn.pragma_query_value(None, "user_version", |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(conn: &Connection) -> Vec<String> {
        let mut statement = conn.prepare("SELECT sql FROM sqlite_schema ORDER BY name").unwrap();
        let sql = statement.query_map((), |row| row.get::<_, Option<String>>(0)).unwrap();
        sql.filter_map(Result::unwrap).collect()
    }

    #[test]
    fn migrating_twice_equals_migrating_once() {
        let mut conn = Connection::open_in_memory().unwrap();
        migrate(&mut conn).unwrap();
        let once = schema(&conn);
        migrate(&mut conn).unwrap();
        assert_eq!(schema(&conn), once);
        assert!(once.iter().any(|sql| sql.contains("CREATE TABLE claims")));
        assert_eq!(version(&conn).unwrap(), MIGRATIONS.len());
    }

    #[test]
    fn a_newer_database_is_refused_and_left_as_it_is() {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.pragma_update(None, "user_version", 1000).unwrap();
        let error = migrate(&mut conn).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 1000, .. }), "{error}");
        assert!(error.to_string().contains("newer version of this program"), "{error}");
        assert!(schema(&conn).is_empty());
    }
}
