-- A fleet may come from several files, and a revision tells what it changed.
CREATE TABLE sources (
    revision INTEGER PRIMARY KEY,
    source   TEXT NOT NULL,
    digest   TEXT NOT NULL,
    author   TEXT NOT NULL,
    at       TEXT NOT NULL,
    summary  TEXT NOT NULL
) STRICT;

INSERT INTO sources (revision, source, digest, author, at, summary)
SELECT
    revision,
    json_object(
        'roots', iif(path IS NULL, json_array(), json_array(CAST(path AS TEXT))),
        'files', json_array(json_object(
            'name', coalesce(CAST(path AS TEXT), 'fleet.yaml'),
            'path', CAST(path AS TEXT),
            'text', text
        ))
    ),
    digest, author, at, ''
FROM revisions;

DROP TABLE revisions;
ALTER TABLE sources RENAME TO revisions;

-- A task on a schedule runs once for each of its moments.
ALTER TABLE tasks ADD COLUMN due TEXT NOT NULL DEFAULT '';
DROP INDEX one_task_per_machine_and_wording;
CREATE UNIQUE INDEX one_task_per_machine_wording_and_moment
    ON tasks (agent, claim, name, digest, due) WHERE claim IS NOT NULL;
