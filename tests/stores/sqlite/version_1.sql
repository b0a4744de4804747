-- What version 1 of the schema held after: three reserves of 100 tokens on key-0, a second apart, of which the
-- first was settled at 140; one on key-1, and a refusal that stated a limit of 9 requests a minute there.
INSERT INTO cooldown VALUES ('model:gemini:key-1:model', 1800000033.0, 'told so', '[["rpm", 9]]');
INSERT INTO learnt_limit VALUES ('model:gemini:key-1:model', 'rpm', 9, 1800086403000000);
INSERT INTO ledgers VALUES (1, 'model:gemini:key-0:model', 1800086400000000, '[["rpm", "rolling", 15, 60.0, 0.3, null, "America/Los_Angeles", 15], ["tpm", "steady", 1000, 60.0, 0.3, 500, "America/Los_Angeles", 1000], ["rpd", "daily", 100, 60.0, 0.3, null, "America/Los_Angeles", 100]]', X'0000000000002240000062A25C941943000000000000F03F000062A25C94194300099FA25C941943000000000000F03F00099FA25C9419430012DCA25C941943000000000000F03F0012DCA25C941943000000000000084068B7F0AB31B17340001B19A35C9419430000000000407540000000000000104000000000000008400000000000000000000062A25C9419430080BF19AD941943');
INSERT INTO ledgers VALUES (2, 'model:gemini:key-1:model', 1800000063300000, '[["rpm", "rolling", 15, 60.0, 0.3, null, "America/Los_Angeles", 15]]', X'0000000000000840001B19A35C941943000000000000F03F001B19A35C941943');
INSERT INTO reservation VALUES ('a1', 1800000601000000, 'model:gemini:key-0:model', 'rpm/rolling tpm/steady rpd/daily', '[1, 100, 1800000001000000, 200, 1800000001000000]');
INSERT INTO reservation VALUES ('a2', 1800000602000000, 'model:gemini:key-0:model', 'rpm/rolling tpm/steady rpd/daily', '[1, 100, 1800000002000000, 300, 1800000002000000]');
INSERT INTO reservation VALUES ('b0', 1800000603000000, 'model:gemini:key-1:model', 'rpm/rolling', '[1, 100, 1800000003000000]');
UPDATE revision SET cooldowns = 2;
