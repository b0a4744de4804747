-- The state store's schema, version 3.
--
-- The limits learnt for a scope share one row: they took two rows for each metric, each with the scope's name, which is
-- longer than a limit. packed_limits is made in limits.py. A limit without details was stated by the provider, and was
-- learnt 24 hours before its end by a program that kept it for that long.

CREATE TABLE learnt_limits (
    scope TEXT PRIMARY KEY,
    limits BLOB NOT NULL    -- of each metric five whole numbers, without a gap: ten times the number of the metric (1
                            -- rpm, 2 tpm, 3 rpd, 4 tpd) plus that of the source (0 configured, 1 stated, 2 inferred,
                            -- 3 unknown), the limit, when it was learnt, what it is raised to, and when (0: never).
                            -- Of each number 7 bits a byte, the lowest first; all bytes but its last have 128 added
) WITHOUT ROWID;

INSERT INTO learnt_limits (scope, limits)
SELECT learnt.scope, packed_limits(
    learnt.metric, value, coalesce(learnt_at, learnt.until - 86400000000), coalesce(raised, value), raise_at,
    coalesce(source, 'stated')
)
FROM learnt_limit AS learnt LEFT JOIN limit_details AS details
ON details.scope = learnt.scope AND details.metric = learnt.metric AND details.until = learnt.until
GROUP BY learnt.scope;

DROP TABLE learnt_limit;
DROP TABLE limit_details;
