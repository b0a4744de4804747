-- The state store's schema, version 2.
--
-- A transaction appends a row to the journal, which says all that it changed of ledgers and reservations.
-- That costs the same however many ledgers it changed, and tells the other processes what is new. When the
-- journal has become long, its oldest rows are deleted. What they say of ledgers, unless a newer row says it,
-- is moved into the table then; reservations that are still open are repeated in the newest row.
--
-- Kinds of ledger are a number with two digits for each ledger: the metric (1 rpm, 2 tpm, 3 rpd, 4 tpd) and
-- the refill (1 rolling, 2 steady, 3 daily). Numbers are little-endian doubles.

CREATE TABLE journal (
    number INTEGER PRIMARY KEY, -- one more than that of the row before it; a gap says that rows of ledgers have
                                -- been deleted, so that nothing that is known from before is to be relied upon
    ledgers BLOB NOT NULL,      -- numbers, for each row of ledgers that changed: its id, the kinds, how many
                                -- numbers follow, and these as in ledgers.state
    opened TEXT NOT NULL,       -- JSON: the ids of reservations that were made
    taken BLOB NOT NULL,        -- numbers, for each of these: when it expires (microseconds), the id of the row
                                -- of ledgers and the kinds that it was taken from, how many numbers follow,
                                -- and these: requests, tokens, then the mark in each ledger
    closed TEXT NOT NULL,       -- JSON: the ids of older reservations that were settled
    cooldowns INTEGER NOT NULL  -- whether cooldown or learnt_limit was changed
);

-- What is taken from each quota: a row for each (provider, project, model).
CREATE TABLE ledgers_2 (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again: the journal may mention deleted ones
    scope TEXT NOT NULL UNIQUE,
    rests_at INTEGER NOT NULL, -- from when all of it is as good as new; up to a minute behind
    terms TEXT NOT NULL,       -- JSON, for each quota: [metric, refill, limit, window, guard, burst, timezone,
                               -- limit in force]
    kinds INTEGER NOT NULL,    -- the kinds of the ledgers in state
    state BLOB NOT NULL        -- what each of them dumps: how many numbers, and these
);
INSERT INTO ledgers_2 (id, scope, rests_at, terms, kinds, state)
SELECT id, scope, rests_at, terms, (
    SELECT CAST(ifnull(group_concat(
        CASE json_extract(value, '$[0]') WHEN 'rpm' THEN 1 WHEN 'tpm' THEN 2 WHEN 'rpd' THEN 3 WHEN 'tpd' THEN 4 END
        || CASE json_extract(value, '$[1]') WHEN 'rolling' THEN 1 WHEN 'steady' THEN 2 WHEN 'daily' THEN 3 END, ''
    ), 0) AS INTEGER) FROM json_each(terms)
), state FROM ledgers;

DROP TABLE ledgers;
-- Those who made them ran an earlier version, and cannot settle them any more: they expire.
DROP TABLE reservation;
DROP TABLE revision;
ALTER TABLE ledgers_2 RENAME TO ledgers;
