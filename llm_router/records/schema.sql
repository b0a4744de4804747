-- The records of all spaces, and how much each space holds. Times are in microseconds since the Unix epoch.
--
-- A space is the name of one, and of its counts that name and "#". A version is also the order of putting.

CREATE TABLE IF NOT EXISTS spaces (
    space TEXT PRIMARY KEY NOT NULL,
    version INTEGER NOT NULL DEFAULT 0,  -- the last one given
    records INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 0      -- bytes
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS records (
    space TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    size INTEGER NOT NULL,
    data BLOB NOT NULL
);

CREATE UNIQUE INDEX IF NOT EXISTS by_name ON records (space, name);
CREATE INDEX IF NOT EXISTS by_version ON records (space, version, expires, name);
CREATE INDEX IF NOT EXISTS by_expiry ON records (space, expires);

CREATE TRIGGER IF NOT EXISTS kept AFTER INSERT ON records BEGIN
    UPDATE spaces SET records = records + 1, size = size + new.size, version = new.version WHERE space = new.space;
END;

CREATE TRIGGER IF NOT EXISTS forgotten AFTER DELETE ON records BEGIN
    UPDATE spaces SET records = records - 1, size = size - old.size WHERE space = old.space;
END;
