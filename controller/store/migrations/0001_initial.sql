-- A record that has a type of its own is one JSON text, beside the columns that are looked for or
-- constrained. Times are RFC 3339 texts; order comes from row ids, never from clocks.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE revisions (
    revision INTEGER PRIMARY KEY,
    path     BLOB, -- as the operating system has it, which need not be UTF-8
    text     TEXT NOT NULL,
    digest   TEXT NOT NULL,
    author   TEXT NOT NULL,
    at       TEXT NOT NULL
) STRICT;

CREATE TABLE claims (
    agent  TEXT PRIMARY KEY,
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE credentials (
    agent  TEXT PRIMARY KEY,
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE backoffs (
    agent  TEXT PRIMARY KEY,
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE operations (
    id        TEXT NOT NULL UNIQUE,
    agent     TEXT NOT NULL,
    record    TEXT NOT NULL,
    outcome   TEXT,
    closed_at TEXT,
    CHECK ((outcome IS NULL) = (closed_at IS NULL))
) STRICT;

CREATE UNIQUE INDEX one_open_operation_per_agent ON operations (agent) WHERE closed_at IS NULL;

CREATE TABLE overrides (
    agent  TEXT NOT NULL,
    path   TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (agent, path)
) STRICT, WITHOUT ROWID;

CREATE TABLE tasks (
    id     TEXT NOT NULL UNIQUE,
    agent  TEXT NOT NULL,
    ended  INTEGER NOT NULL,
    -- Where a task of the fleet file comes from; all three or none.
    claim  TEXT,
    name   TEXT,
    digest TEXT,
    record TEXT NOT NULL, -- without the output
    output TEXT NOT NULL  -- apart, so that lists need not carry it
) STRICT;

CREATE INDEX tasks_of_agent ON tasks (agent);
CREATE INDEX tasks_unfinished ON tasks (ended) WHERE ended = 0;
CREATE UNIQUE INDEX one_task_per_machine_and_wording ON tasks (agent, claim, name, digest) WHERE claim IS NOT NULL;

CREATE TABLE tokens (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    digest     TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The latest incarnation of each name, which outlives its claim: a number is never given twice, so that
-- nothing of a former machine can pass for the next one's.
CREATE TABLE incarnations (
    agent TEXT PRIMARY KEY,
    last  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE approvals (
    id     TEXT PRIMARY KEY,
    agent  TEXT NOT NULL,
    author TEXT NOT NULL,
    at     TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice, even when the latest are pruned
    at      TEXT NOT NULL,
    kind    TEXT NOT NULL,
    agent   TEXT,
    message TEXT NOT NULL
) STRICT;

CREATE TABLE audit (
    id     INTEGER PRIMARY KEY,
    at     TEXT NOT NULL,
    actor  TEXT NOT NULL,
    method TEXT NOT NULL,
    path   TEXT NOT NULL,
    status INTEGER NOT NULL
) STRICT;
