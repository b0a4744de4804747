-- Tables that were added to schema version 2, release by release: a file of that version has all, some or none of them.
-- To the programs that do not know them, a half-open cooldown is an ordinary one.

-- The rest of a cooldown. It applies as long as the cooldown of the scope still has the same end.
CREATE TABLE IF NOT EXISTS cooldown_details (
    scope TEXT PRIMARY KEY,
    until REAL NOT NULL,
    half_open INTEGER NOT NULL,
    strikes INTEGER NOT NULL,
    since REAL NOT NULL,
    credential TEXT NOT NULL,
    imposed INTEGER NOT NULL   -- when the end was set, in microseconds
) WITHOUT ROWID;

-- How many cooldowns were lifted or made due.
CREATE TABLE IF NOT EXISTS lifts (count INTEGER NOT NULL);
INSERT INTO lifts SELECT 0 WHERE NOT EXISTS (SELECT * FROM lifts);

-- When the record of the file began, what may be missing from the one before, and when the file last lost something
-- (0: never); all in seconds. One row.
CREATE TABLE IF NOT EXISTS record (
    since REAL NOT NULL,
    previous REAL NOT NULL,
    gap_from REAL NOT NULL,
    reset_at REAL NOT NULL
);

-- The last charge of each process and model, so that it counts once however often it is repeated, and when it came, in
-- microseconds.
CREATE TABLE IF NOT EXISTS charges (
    source TEXT NOT NULL,
    scope TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    came INTEGER NOT NULL,
    PRIMARY KEY (source, scope)
) WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS charges_came ON charges (came);

-- The processes that announced themselves, and when they last did, in microseconds.
CREATE TABLE IF NOT EXISTS processes (source TEXT PRIMARY KEY, seen INTEGER NOT NULL) WITHOUT ROWID;

-- The rest of a learnt limit. It applies as long as the limit in learnt_limit still has the same end; a limit without
-- it was stated by the provider, and was learnt 24 hours before its end by a program that kept it for that long.
CREATE TABLE IF NOT EXISTS limit_details (
    scope TEXT NOT NULL,
    metric TEXT NOT NULL,
    until INTEGER NOT NULL,
    learnt_at INTEGER NOT NULL,
    raised INTEGER NOT NULL,
    raise_at INTEGER NOT NULL,  -- 2^62: never
    source TEXT NOT NULL,
    PRIMARY KEY (scope, metric)
) WITHOUT ROWID;

-- JSON: what each of the limits in cooldown.learnt says besides its metric and limit, if one does. It applies as long
-- as the cooldown of the scope still has the same end.
CREATE TABLE IF NOT EXISTS cooldown_limits (
    scope TEXT PRIMARY KEY,
    until REAL NOT NULL,
    details TEXT NOT NULL
) WITHOUT ROWID;
