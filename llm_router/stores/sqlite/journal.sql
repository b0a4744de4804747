-- The state store's schema, version 2.
--
-- A transaction appends one row to the journal, with everything that it changed in ledgers and reservations.
-- That costs the same however many ledgers it changed, and shows other processes what is new. When the journal
-- has become long, its oldest rows are deleted. Their ledgers, unless a newer row has them, move into the table
-- then; reservations that are still open are repeated in the newest row.
--
-- Kinds of ledgers are one number with two digits for each ledger: the metric (1 rpm, 2 tpm, 3 rpd, 4 tpd) and
-- the refill (1 rolling, 2 steady, 3 daily). Numbers are little-endian doubles.

CREATE TABLE journal (
    number INTEGER PRIMARY KEY, -- one more than that of the row before it; a gap means that rows of ledgers have
                                -- been deleted, so that nothing known from before is valid any more
    ledgers BLOB NOT NULL,      -- numbers, for each changed row of ledgers: its id, the kinds, how many numbers
                                -- follow, and these as in ledgers.state
    opened TEXT NOT NULL,       -- JSON: the ids of reservations that were made
    taken BLOB NOT NULL,        -- numbers, for each of these: when it expires (microseconds), the id of the row
                                -- of ledgers and the kinds that it took from, how many numbers follow, and
                                -- these: requests, tokens, then the mark in each ledger
    closed TEXT NOT NULL,       -- JSON: the ids of older reservations that were settled
    cooldowns INTEGER NOT NULL  -- whether cooldown or learnt_limit changed
);

-- What is taken from each quota: one row for each (provider, project, model).
CREATE TABLE ledgers_2 (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never reused: the journal may mention deleted rows
    scope TEXT NOT NULL UNIQUE,
    rests_at INTEGER NOT NULL, -- when everything is back; up to a minute behind
    terms TEXT NOT NULL,       -- JSON, for each quota: [metric, refill, limit, window, guard, burst, timezone,
                               -- limit in force]
    kinds INTEGER NOT NULL,    -- the kinds of the ledgers in state
    state BLOB NOT NULL        -- the dump of each of them: how many numbers, and these
);
INSERT INTO ledgers_2 (id, scope, rests_at, terms, kinds, state)
SELECT id, scope, rests_at, terms, (
    SELECT CAST(ifnull(group_concat(
        CASE json_extract(value, '$[0]') WHEN 'rpm' THEN 1 WHEN 'tpm' THEN 2 WHEN 'rpd' THEN 3 WHEN 'tpd' THEN 4 END
        || CASE json_extract(value, '$[1]') WHEN 'rolling' THEN 1 WHEN 'steady' THEN 2 WHEN 'daily' THEN 3 END, ''
    ), 0) AS INTEGER) FROM json_each(terms)
), state FROM ledgers;

DROP TABLE ledgers;
-- The processes that made them ran an earlier version and can no longer settle them: they expire.
DROP TABLE reservation;
DROP TABLE revision;
ALTER TABLE ledgers_2 RENAME TO ledgers;
