-- The state store's schema, version 1.
--
-- Times are whole microseconds since the Unix epoch, except in cooldown.until (seconds; infinity for a
-- quarantine). JSON is marked as such. No table holds an API key or anything made from one.

-- What is taken from each quota: one row for each (provider, project, model). Stores keep the rows they use in
-- memory and write back what changed.
CREATE TABLE ledgers (
    id INTEGER PRIMARY KEY,
    scope TEXT NOT NULL UNIQUE,
    rests_at INTEGER NOT NULL, -- when everything is back; up to a minute behind
    terms TEXT NOT NULL,       -- JSON, for each quota: [metric, refill, limit, window, guard, burst, timezone,
                               -- limit in force]
    state BLOB NOT NULL        -- the dump of the ledger of each quota, in the same order: for each, how many
                               -- numbers, and these; all of them little-endian doubles
);

-- What was taken before a request and is not settled yet.
CREATE TABLE reservation (
    id TEXT PRIMARY KEY,
    expires INTEGER NOT NULL,
    scope TEXT NOT NULL,       -- the row of ledgers that it took from
    kinds TEXT NOT NULL,       -- metric/refill of each quota, separated by spaces
    taken TEXT NOT NULL        -- JSON: requests, tokens, then the mark in each quota's ledger
) WITHOUT ROWID;

-- What cools down.
CREATE TABLE cooldown (
    scope TEXT PRIMARY KEY,
    until REAL NOT NULL,
    reason TEXT NOT NULL,
    learnt TEXT NOT NULL       -- JSON: the limits learnt with it, as [metric, limit]
) WITHOUT ROWID;

-- Limits that the provider stated in a refusal.
CREATE TABLE learnt_limit (
    scope TEXT NOT NULL,
    metric TEXT NOT NULL,
    value INTEGER NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (scope, metric)
) WITHOUT ROWID;

-- How often cooldown and learnt_limit were changed: a process that has read them at this count is up to date.
CREATE TABLE revision (cooldowns INTEGER NOT NULL);
INSERT INTO revision VALUES (0);
