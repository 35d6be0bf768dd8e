-- A task of a pool waits without an agent, tasks can be dead letters, and what they write is kept in the
-- output log beside the database. Output of tasks from before is not carried over.
CREATE TABLE new_tasks (
    id          TEXT NOT NULL UNIQUE,
    agent       TEXT, -- nothing while a task of a pool has found none
    "group"     TEXT, -- of the tasks that one request made for several agents
    state       TEXT NOT NULL,
    dead        INTEGER NOT NULL,
    request_key TEXT, -- what its author calls it
    -- Where a task of the fleet file comes from; the first three or none.
    claim       TEXT,
    name        TEXT,
    digest      TEXT,
    due         TEXT NOT NULL,
    record      TEXT NOT NULL
) STRICT;

INSERT INTO new_tasks (rowid, id, agent, state, dead, claim, name, digest, due, record)
SELECT
    rowid, id, agent, record ->> '$.state.state', 0, claim, name, digest, due,
    json_remove(
        json_set(
            record,
            '$.job', json_object(
                'work', json_object('type', 'exec', 'argv', json(record -> '$.run.argv')),
                'env', json(coalesce(record -> '$.run.env', '{}')),
                'cwd', record ->> '$.run.cwd'
            ),
            '$.terms', json_object('timeout', json(record -> '$.timeout'))
        ),
        '$.run', '$.timeout', '$.output'
    )
FROM tasks;

DROP TABLE tasks;
ALTER TABLE new_tasks RENAME TO tasks;

CREATE INDEX tasks_of_agent ON tasks (agent);
CREATE INDEX tasks_of_group ON tasks ("group") WHERE "group" IS NOT NULL;
CREATE INDEX tasks_unfinished ON tasks (state) WHERE state <> 'ended';
CREATE INDEX tasks_dead ON tasks (dead) WHERE dead = 1;
CREATE INDEX tasks_of_request_key ON tasks (request_key) WHERE request_key IS NOT NULL;
CREATE UNIQUE INDEX one_task_per_machine_wording_and_moment
    ON tasks (agent, claim, name, digest, due) WHERE claim IS NOT NULL;

-- One to several receivers is several rows of one id. An id is its sender's: nobody's message can be taken
-- for another's.
CREATE TABLE messages (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT, -- the order in which they were accepted; never given twice
    id       TEXT NOT NULL,
    sender   TEXT NOT NULL,
    receiver TEXT NOT NULL,
    state    TEXT NOT NULL,
    record   TEXT NOT NULL,
    UNIQUE (id, sender, receiver)
) STRICT;

CREATE INDEX messages_waiting ON messages (state) WHERE state = 'waiting';
CREATE INDEX messages_dead ON messages (state) WHERE state = 'dead';
CREATE INDEX messages_to ON messages (receiver, seq);
CREATE INDEX messages_from ON messages (sender, seq);

-- Tokens from before there were roles may do everything.
ALTER TABLE tokens ADD COLUMN role TEXT NOT NULL DEFAULT 'admin';
ALTER TABLE tokens ADD COLUMN expires_at TEXT;
