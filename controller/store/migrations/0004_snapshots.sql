-- Snapshots of machines, and what is to be done with them. An errand that is over is kept for whoever asked.
CREATE TABLE snapshots (
    agent  TEXT NOT NULL,
    name   TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (agent, name)
) STRICT;

CREATE TABLE errands (
    id     TEXT NOT NULL UNIQUE,
    agent  TEXT NOT NULL,
    open   INTEGER NOT NULL,
    record TEXT NOT NULL
) STRICT;

CREATE INDEX errands_open ON errands (open) WHERE open = 1;
