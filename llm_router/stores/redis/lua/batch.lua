-- Runs the operations of one batch in order, as one atomic step.
--
-- Input. KEYS: the hash of reservations, the key with the state of its sweep (reservations.lua), the key of what
-- concerns keys, projects and providers, and the same of format 2 (cooldowns.lua), the epoch (epoch.lua), the sorted set
-- of the processes, the hash of reservations of earlier releases. Keys of scopes and charges are used as well; they share
-- the hash tag of KEYS. Most arguments are packed, described here as for the struct library and little-endian. Times are
-- in microseconds. A place in another argument is a byte, counted from 1.
--   ARGV[1]  I8 the caller's clock, 0 to use the server's; I8 from when and I8 until when the message makes sense, by
--            the server's clock: the midnights are right, and the caller still waits; I8 how long a learnt limit
--            lasts, I8 a probe of a half-open cooldown, I8 the memory of an ended one; I4 how many settles there are;
--            I6 the fingerprint of the profile of all deployments, 0 if they have several; I8 when the epoch began, as
--            far as the caller knows, or 0; B 1 if the run id of the server is to be compared with that of the epoch
--   ARGV[2]  prefix of the key of a scope, and ARGV[3] what follows the name in it
--   ARGV[4]  operations: B kind, I4 argument, I8 requests, I8 tokens, I8 lasts, I4 length of the id, and the id
--              1 reserve: place of its shortlist, what to take, microseconds until it expires
--              2 settle: what was used
--              3 cool down: the number of the cooldown, from 1
--              4 snapshot: place of its shortlist
--              5 charge: place of its shortlist, of one deployment; in the place of requests, the number of the charge
--              6 announce a process: its name as the id
--   ARGV[5]  shortlists: I2 how many deployments, I2 the number of each, from 1; after the last one two bytes more
--   ARGV[6]  deployments: I4 the place of its other scopes, I4 the place of its profile, I8 when its record began, as
--            far as the caller knows, or 0
--   ARGV[7]  profiles: I6 a fingerprint of what follows; B how many quotas, plus 8 for an adaptive one of requests per
--            minute, 16 of tokens per minute, 32 of requests per day, 64 of tokens per day; of each B metric 1-4, B kind
--            (ledgers.lua), I8 limit, I8 window, I8 window and guard, I8 guard, I8 capacity, s time zone. The first
--            profile belongs to no deployment: it describes, metric by metric, the quota that a learnt limit creates
--            where none is configured.
--   ARGV[8]  time zones: s name, five I8: consecutive midnights, with now before the third
--   ARGV[9]  JSON, or nothing: cooldowns, each [scope, until, until exact, description, 1 if it is half-open or 0,
--            [limits, each [metric, limit, or -1 to forget it, what it is raised to, after how many microseconds, the
--            source 1-4, when that was learnt which it replaces: 0 for nothing, -1 for anything]]]; for "until exact"
--            also "lift", "retry" and "probe"; and charges, each [source, sequence as 20 digits, when the record began
--            that the caller knows, or 0, the takings that were never counted, those that were counted in that record];
--            of each taking the time, requests, tokens
--   ARGV[10] other scopes: for each deployment, or several, s key, s project, s provider
--   ARGV[11] prefix of the key of a companion (full.lua); the name of the scope follows
--   ARGV[12] prefix of the key of a charge; its source and the name of the scope follow
--   ARGV[13] and on: for each deployment, the key of the companion of its model's scope
--
-- Reply: {status, now, text, descriptions, numbers, lifts, done, epoch, reset_at, failures}.
--   "ok"       descriptions: two for each number, what was sent and the present end (as "until exact");
--              lifts: a number that changes whenever a cooldown is lifted, or ended for a retry;
--              done: how many operations, from the first on, were done: at least one; the others are to be sent again;
--              epoch: when it began, or 0 if the server accepts no writes (and nothing was to be written);
--              reset_at: when the shard last lost something, or 0
--              failures: for each operation that failed alone its number, from 1, a key that holds something else, or
--              nothing, and in the latter case the error of the server
--              numbers, for each operation but settles and cooldowns in turn:
--                reserve: four times the number of refusals, plus one if the next candidate was taken, or two if it
--                  also probes cooldowns; for each refusal the reason (a metric; 0 for a cooldown; 5 if the shard or
--                  the record lost something, 6 if it is not the one that the caller knows, 7 if its key holds
--                  something else), plus 8 if wake_at is the same as retry_at and left out, plus 16 times the number of
--                  the description of the cooldown that applies, or of the scope whose key that is (0 for none),
--                  retry_at and wake_at; if one was taken, the share that remains of its tightest quota and of its
--                  tightest daily one, in units of 2^-53, and when its record began; if it probes cooldowns, how many,
--                  and the number of the description of each
--                charge: when the record of the deployment began; 0 if it failed
--                announce: how many processes were alive in the last minute, and how many of their names are less than
--                  this one, or -1 if they are too many to look; 0 and -1 if it failed
--                snapshot, for each deployment: how many quotas, the number of the description of its cooldown,
--                  or 0, or below 0 that of a scope whose key holds something else; for each quota the metric, plus 8
--                  if something was learnt of it, the limit, used, resets_at; then what was learnt: the limit, the
--                  source, when, what it is raised to, and when
--   "again"    nothing was done: the caller is wrong about the server's time, or `text` names a time zone that is
--              needed
--   "corrupt"  nothing was done: `text` is a key that holds something else

local RESERVE, SETTLE, COOL_DOWN, SNAPSHOT, CHARGE, ANNOUNCE = 1, 2, 3, 4, 5, 6
local BUDGET = 4000  -- how much may be spent before a call ends, so that others need not wait for long
local OPERATION = "<BI4I8I8I8I4c0"

local done = 0       -- how many operations were begun
local failures = {}

local function fail(key, text, number)
  insert(failures, number or done)
  insert(failures, key)
  insert(failures, text or "")
end

-- Change what was taken from a ledger. If it was of another kind then, what was used more counts as taken now, and what
-- was used less is not given back.
local function correct(s, metric, kind, mark, change)
  local b = FIRST_LEDGER + (metric - 1) * LEDGER
  if s[b] == 0 then return end
  local present = kind_of(s[b])
  present.open(s, b)
  if kind == s[b] then
    present.correct(s, b, mark, change)
  elseif change > 0 then
    present.take(s, b, change)
  end
  if change > 0 and s[9] ~= "" and s[b] ~= DAILY then
    changing = changing or load_changing()
    changing.count(s, metric, change)
  end
end

local function settle(id, used_requests, used_tokens)
  spent = spent + 5
  local requests, tokens, name, marks, is_format_2 = remove_reservation(id)
  if not requests then
    if tokens then fail(tokens) end
    return
  end
  requests, tokens = used_requests - requests, used_tokens - tokens
  if requests == 0 and tokens == 0 then return end
  local s = get_scope(name)
  for metric, mark in string.gmatch(marks, "(%d) (%d+)") do
    metric = tonumber(metric)
    local change = metric % 2 == 0 and tokens or requests
    if change ~= 0 then
      local kind = byte(mark) ~= 48 and ROLLING or byte(mark, 2) ~= 48 and STEADY or DAILY
      if is_format_2 then kind = s[FIRST_LEDGER + (metric - 1) * LEDGER] end
      correct(s, metric, kind, tonumber(mark), change)
    end
  end
  touch(s)
end

local function snapshot(shortlist)
  local count = unpack_from("<I2", ARGV[5], shortlist)
  for i = 1, count do
    local number = unpack_from("<I2", ARGV[5], shortlist + 2 * i)
    local deployment = opened[number] or open_deployment(number, true)
    local s, all, cooling = deployment.scope, deployment.terms, deployment.cooling
    spent = spent + 8
    refusing = refusing or load_refusing()
    local number = cooling and refusing.describe(cooling[6], cooling[7]) or 0
    reply(#all, deployment.is_foreign and -number or number)
    for _, terms in ipairs(all) do
      local kind = kinds[terms.kind]
      local entry = deployment.learnt and deployment.learnt[terms.metric]
      reply(terms.metric + (entry and 8 or 0), terms.limit)
      reply(kind.used(s, terms.at), kind.resets_at(s, terms.at))
      if entry then
        for field = 1, 5 do
          length = length + 1
          numbers[length] = entry[field]
        end
      end
    end
  end
end

local function charge(shortlist, item)
  local number = unpack_from("<I2", ARGV[5], shortlist + 2)
  charges = charges or load_charges()
  local since, key = charges.make(opened[number] or open_deployment(number), item)
  if not since then fail(key) end
  length = length + 1
  numbers[length] = since or 0
end

-- The names of processes, where the reply to each belongs, and the number of the operation.
local announced = {}

-- Return how many processes are alive, and how many of their names are less than this one; -1 if they are too many.
local function write_announcement(name)
  local ALIVE, MANY = 60 * 1e6, 1000
  call("ZADD", KEYS[6], digits(now), name)
  call("ZREMRANGEBYSCORE", KEYS[6], "-inf", digits(now - ALIVE))
  call("ZREMRANGEBYSCORE", KEYS[6], "(" .. digits(now), "+inf") -- from before the clock was set back
  call("PEXPIRE", KEYS[6], digits(2 * ALIVE / 1000))
  local count, rank = call("ZCARD", KEYS[6]), -1
  if count <= MANY then
    rank = 0
    for _, other in ipairs(call("ZRANGE", KEYS[6], 0, -1)) do
      if other < name then rank = rank + 1 end
    end
  end
  return count, rank
end

-- Last, since what fails here must not fail what was written before.
local function write_announcements()
  for _, announcement in ipairs(announced) do
    local name, place, number = unpack(announcement)
    local is_written, answer, rank = pcall(write_announcement, name)
    numbers[place], numbers[place + 1] = is_written and answer or 0, is_written and rank or -1
    if not is_written then
      local text = type(answer) == "table" and answer.err or tostring(answer)
      fail(string.find(text, "WRONGTYPE", 1, true) and KEYS[6] or "", text, number)
    end
  end
end

-- Read in one command what is likely to be needed: the scopes of the first candidate of every shortlist. Notice which
-- of these have a companion.
local function fetch_first()
  local keys, numbers, at, last = {}, {}, 1, #ARGV[5] - 2
  local function want(name)
    local key = prefix .. name .. version
    if fetched[key] == nil then
      fetched[key] = false
      keys[#keys + 1] = key
    end
  end
  while at <= last do
    local count, number = unpack_from("<I2I2", ARGV[5], at)
    if count > 0 then
      want(sub(ARGV[MODELS + number], #full_prefix + 1))
      numbers[#keys] = number
      if others_until > now then
        local _, others = named(number)
        cooldowns = cooldowns or load_cooldowns()
        cooldowns.each(others, want)
      end
    end
    at = at + 2 + 2 * count
  end
  if not keys[1] then return end
  local values = call("MGET", unpack(keys))
  for i = 1, #keys do
    local value = values[i]
    fetched[keys[i]] = value
    if value and (byte(value) or 0) >= 128 and numbers[i] then knowledge[numbers[i]] = true end
  end
end

-- Read the reservations that are settled.
local function fetch_settled(operations)
  local at, settled = 1, {}
  while at < #operations do
    local kind, _, _, _, _, id, following = unpack_from(OPERATION, operations, at)
    if kind == SETTLE then settled[#settled + 1] = id end
    at = following
  end
  fetch_reservations(settled)
end

local function run(settles)
  local operations, imposed, at, only_reads = ARGV[4], nil, 1, true
  fetch_first()
  if settles > 0 then fetch_settled(operations) end
  while at < #operations and spent < BUDGET do
    local kind, argument, requests, tokens, lasts, id, following = unpack_from(OPERATION, operations, at)
    at, done = following, done + 1
    if kind ~= SNAPSHOT then only_reads = false end
    if kind == RESERVE then
      reserve(id, argument, requests, tokens, lasts)
    elseif kind == SETTLE then
      settle(id, requests, tokens)
    elseif kind == COOL_DOWN then
      imposed = imposed or cjson.decode(ARGV[9])
      cooldowns = cooldowns or load_cooldowns()
      local key = cooldowns.impose(imposed[argument])
      if key then fail(key) end
      opened = {}
    elseif kind == CHARGE then
      imposed = imposed or cjson.decode(ARGV[9])
      charge(argument, imposed[requests])
    elseif kind == ANNOUNCE then
      announced[#announced + 1] = { id, length + 1, done }
      length = length + 2
    else
      snapshot(argument)
    end
  end
  return only_reads
end

-- What is written first fails as a whole, and leaves everything as it was. Return a key that holds something else, if
-- that is why.
local function write()
  local key = cooldowns and cooldowns.check() or write_reservations()
  if key then return key end
  write_scopes()
  if full then full.write() end
  if cooldowns then cooldowns.write() end
  write_epoch()
  if charges then charges.write() end
  write_announcements()
end

local earliest, latest, settles, known_epoch, is_checked
now, earliest, latest, learnt_for, probe_time, strikes_kept, settles, sole_profile, known_epoch, is_checked =
  unpack_from("<I8I8I8I8I8I8I4I6I8B", ARGV[1], 1)
prefix, version, full_prefix, charge_prefix = ARGV[2], ARGV[3], ARGV[11], ARGV[12]
if now == 0 then
  local time = call("TIME")
  now = time[1] * 1e6 + time[2]
end
local state = call("MGET", KEYS[2], KEYS[3], KEYS[4], KEYS[5])
read_sweep(state[1])
corrupt = read_others(state[2], state[3])
if not read_epoch(state[4], known_epoch, is_checked == 1) then corrupt = KEYS[5] end
if corrupt then return { "corrupt", now, corrupt, {}, {}, 0, 0 } end
if now < earliest or now > latest then return { "again", now, "", {}, {}, 0, 0 } end
local only_reads = run(settles)
if missing_zone then return { "again", now, missing_zone, {}, {}, 0, 0 } end
if corrupt then return { "corrupt", now, corrupt, {}, {}, 0, 0 } end
-- Nothing has been written so far. A server that accepts no writes may be read all the same: what a snapshot would write
-- is not needed for its answer.
if only_reads then
  local is_written, key = pcall(write)
  if not is_written or key then
    epoch, reset_at = 0, 0
  end
else
  corrupt = write()
  if corrupt then return { "corrupt", now, corrupt, {}, {}, 0, 0 } end
end
return { "ok", now, "", descriptions, numbers, lifts, done, epoch, reset_at, failures }
