-- Runs the operations of one batch in order, as one atomic step.
--
-- Input. KEYS: the hash of reservations, the key with the state of its sweep (reservations.lua), the key of what
-- concerns keys, projects and providers, and the same of format 2 (scopes.lua). Keys of scopes are used as well; they
-- share the hash tag of KEYS. Most arguments are packed, described here as for the struct library and little-endian.
-- Times are in microseconds. A place in another argument is a byte, counted from 1.
--   ARGV[1]  I8 the caller's clock, 0 to use the server's; I8 from when and I8 until when the message makes sense, by
--            the server's clock: the midnights are right, and the caller still waits; I8 how long a learnt limit
--            lasts, I8 a probe of a half-open cooldown, I8 the memory of an ended one; I4 how many settles there are
--   ARGV[2]  prefix of the key of a scope, and ARGV[3] what follows the name in it
--   ARGV[4]  operations: B kind, I4 argument, I8 requests, I8 tokens, I8 lasts, I4 length of the id, and the id
--              1 reserve: place of its shortlist, what to take, microseconds until it expires
--              2 settle: what was used
--              3 cool down: the number of the cooldown, from 1
--              4 snapshot: place of its shortlist
--   ARGV[5]  shortlists: I2 how many deployments, I2 the number of each, from 1
--   ARGV[6]  deployments: I2 the number of the scope of its model, from 1, I4 the place of its other scopes, I4 the
--            place of its profile
--   ARGV[7]  profiles: B how many quotas; of each B metric 1-4, B kind (ledgers.lua), I8 limit, I8 window, I8 window
--            and guard, I8 guard, I8 capacity, s time zone. The first profile belongs to no deployment: it describes,
--            metric by metric, the quota that a learnt limit creates where none is configured.
--   ARGV[8]  time zones: s name, five I8: consecutive midnights, with now before the third
--   ARGV[9]  JSON, or nothing: cooldowns, each [scope, until, until exact, description, 1 if it is half-open or 0,
--            [metric, limit, …]]; for "until exact" also "lift", "retry" and "probe"
--   ARGV[10] other scopes: for each deployment, or several, s key, s project, s provider
--   ARGV[11] and on: the names of the scopes of models
--
-- Reply: {status, now, text, descriptions, numbers, lifts}.
--   "ok"       descriptions: two for each number, what was sent and the present end (as "until exact");
--              lifts: a number that changes whenever a cooldown is lifted, or ended for a retry;
--              numbers, for each reserve and snapshot in turn:
--                reserve: four times the number of refusals, plus one if the next candidate was taken, or two if it
--                  also probes cooldowns; for each refusal eight times the number of the description of the cooldown
--                  that applies (0 for none) plus the reason (a metric, or 0 for that cooldown), retry_at and wake_at;
--                  if one was taken, the share that remains of its tightest quota and of its tightest daily one, in
--                  units of 2^-53; if it probes cooldowns, how many, and the number of the description of each
--                snapshot, for each deployment: how many quotas, the number of the description of its cooldown
--                  or 0; for each quota the metric, the limit, used, resets_at
--   "again"    nothing was done: the caller is wrong about the server's time, or `text` names a time zone that is
--              needed
--   "corrupt"  nothing was done: `text` is a key that holds something else

local RESERVE, SETTLE, COOL_DOWN = 1, 2, 3
local OPERATION = "<BI4I8I8I8I4c0"

local MODELS = 10    -- arguments before the names of the scopes of models

local numbers = {}   -- the reply
local length = 0     -- how many numbers there are
local descriptions = {}
local opened = {}    -- number of a deployment -> its scope and terms, under the limits in force

local function reply(a, b)
  numbers[length + 1], numbers[length + 2] = a, b
  length = length + 2
end

-- Deployments ------------------------------------------------------------------------------------------------

-- The scope of the model of a deployment, the place of its other scopes, and the place of its profile.
local function named(number)
  local model, others, profile = unpack_from("<I2I4I4", ARGV[6], number * 10 - 9)
  return ARGV[MODELS + model], others, profile
end

local open_deployment = (function()
  local EXACT_LIMIT, SLICES = 240, 240 -- as in stores/ledger/

  local profiles = {}  -- place -> its quotas

  -- A quota under a limit, in the form that its ledger needs; `limit_expires` is the end of a learnt limit.
  local function terms_of(quota, limit, limit_expires)
    local metric, kind = quota[1], quota[2]
    return {
      metric = metric,
      tokens = metric % 2 == 0,
      daily = kind == DAILY,
      kind = kind,
      at = FIRST_LEDGER + (metric - 1) * LEDGER,
      limit = limit,
      resolution = limit <= EXACT_LIMIT and 0 or floor(quota[4] / SLICES),
      span = quota[5],
      guard = quota[6],
      capacity = min(quota[7], limit),
      zone = quota[8],
      limit_expires = limit_expires,
    }
  end

  -- The format in which a reservation stores a mark for each quota; see reservations.lua.
  local function form_of(terms)
    local form = ""
    for i = 1, #terms do
      form = form .. " " .. terms[i].metric .. " " .. sub("00", 1, terms[i].kind - 1) .. "%d"
    end
    return form
  end

  -- The quotas of a profile: as received, and as terms under their own limits.
  local function profile_at(place)
    local profile = profiles[place]
    if not profile then
      local count, at = unpack_from("B", ARGV[7], place)
      profile = { quotas = {}, terms = {} }
      for i = 1, count do
        local quota = { unpack_from("<BBI8I8I8I8I8s", ARGV[7], at) }
        at = quota[9]
        profile.quotas[i], profile.terms[i] = quota, terms_of(quota, quota[3], NEVER)
      end
      profile.terms.taken_from = form_of(profile.terms)
      profiles[place] = profile
    end
    return profile
  end

  -- The terms of a scope under its learnt limits, which lower configured limits and add missing ones.
  local function learnt_terms(profile, learnt)
    local terms = {}
    for i, quota in ipairs(profile.quotas) do
      local entry = learnt[quota[1]]
      terms[i] = entry and entry[1] < quota[3] and terms_of(quota, entry[1], entry[2]) or profile.terms[i]
      learnt[quota[1]] = nil
    end
    for metric, quota in ipairs(profile_at(1).quotas) do
      if learnt[metric] then insert(terms, terms_of(quota, learnt[metric][1], learnt[metric][2])) end
    end
    terms.taken_from = form_of(terms)
    return terms
  end

  -- Find or create the ledger for the terms, and bring it up to now.
  local function open_ledger(s, terms)
    local b, kind = terms.at, kind_of(terms.kind)
    local present = s[b]
    if present == terms.kind then
      -- A settle does not know the limits: it uses those that were in force when the ledger was last opened.
      local changed = kind.configure(s, b, terms)
      if kind.open(s, b) or changed then touch(s) end
    elseif present == 0 then
      s[b], s[b + LEDGER - 1] = terms.kind, ""
      kind.configure(s, b, terms)
      kind.open(s, b)
    else
      get_changing().replace(s, terms)
      opened = {} -- deployments for which the quota refills in another way must see it change back
    end
  end

  -- A deployment is opened once in a batch, and again after a cooldown.
  return function(number)
    local model, others, place = named(number)
    local s, profile = get_scope(model), profile_at(place)
    local terms = profile.terms
    if s[8] ~= "" then
      local learnt, is_set_back = learnt_limits(s)
      if is_set_back then set_learnt_limits(s, learnt) end
      terms = learnt_terms(profile, learnt)
    end
    for i = 1, #terms do
      open_ledger(s, terms[i])
    end
    local deployment = { scope = s, terms = terms, marks = {}, marked = "", name = " " .. model .. "@" }
    if s[3] > 0 or others_until > now then get_cooldowns().see(deployment, others) end
    opened[number] = deployment
    return deployment
  end
end)()

-- Reserve ----------------------------------------------------------------------------------------------------

-- Whether a demand certainly fits now: true for nearly every reserve, which then needs nothing else.
local function fits(deployment, requests, tokens)
  local s, all = deployment.scope, deployment.terms
  for i = 1, #all do
    local terms = all[i]
    local most, b = terms.limit - (terms.tokens and tokens or requests), terms.at
    -- The first number of a ledger is what is used; that of a steady one is a debt, which drains.
    if terms.kind == STEADY or s[b + USED] > most or terms.daily and s[b + CARRY] > most then return false end
  end
  return not deployment.cooling
end

-- Take what fits, reply what remains, and return where it was taken from, in stored form.
local function take(deployment, requests, tokens)
  local s, all, marks, remarked = deployment.scope, deployment.terms, deployment.marks, false
  local share, daily_share = 1, 1
  for i = 1, #all do
    local terms = all[i]
    local b, kind, limit = terms.at, kinds[terms.kind], terms.limit
    local mark = kind.take(s, b, terms.tokens and tokens or requests)
    if mark ~= marks[i] then marks[i], remarked = mark, true end
    local taken = terms.kind == STEADY and kind.used(s, b) or s[b + USED]
    local remains = taken < limit and 1 - taken / limit or 0
    if terms.daily then
      if remains < daily_share then daily_share = remains end
    elseif remains < share then
      share = remains
    end
  end
  if s[9] ~= "" then get_changing().count_all(s, all, requests, tokens) end
  if remarked then deployment.marked = format(all.taken_from, unpack(marks)) end
  reply(share * 2 ^ 53, daily_share * 2 ^ 53)
  return deployment.marked
end

-- What is needed as soon as one candidate is refused, or probes a cooldown.
local function load_refusing()
  local numbered = {}  -- description and end of a cooldown -> their number
  local refusing = {}

  -- Return the number that stands for a cooldown in the reply.
  function refusing.describe(s)
    local name = s[6] .. s[7]
    if not numbered[name] then
      insert(descriptions, s[7])
      insert(descriptions, s[6])
      numbered[name] = #descriptions / 2
    end
    return numbered[name]
  end

  -- When a demand fits (now, if it does), and the metric that it waits for the longest, or 0 for a cooldown.
  function refusing.room_at(deployment, requests, tokens)
    local latest, reason = now, 0
    local cooling, s, all = deployment.cooling, deployment.scope, deployment.terms
    if cooling then latest = cooling[3] end
    for i = 1, #all do
      local terms = all[i]
      local amount = terms.tokens and tokens or requests
      if amount > 0 then
        local moment = kinds[terms.kind].room_at(s, terms.at, amount, terms)
        if moment > now then
          moment = min(moment, terms.limit_expires) -- a learnt limit of 0 does not last for ever
          if moment > latest then latest, reason = moment, terms.metric end
        end
      end
    end
    return latest, reason
  end

  function refusing.refuse(deployment, retry_at, reason)
    if deployment.cooling then reason = reason + 8 * refusing.describe(deployment.cooling) end
    length = length + 1
    numbers[length] = reason
    reply(retry_at, min(retry_at, (refusing.room_at(deployment, 1, 1))))
  end

  -- Let the request that was granted probe the half-open cooldowns that have ended, and reply which.
  function refusing.probe(deployment)
    length = length + 1
    numbers[length] = #deployment.due
    for _, s in ipairs(deployment.due) do
      length = length + 1
      numbers[length] = refusing.describe(s)
      get_cooldowns().probe(s)
    end
    opened = {}
  end

  return refusing
end

local refusing -- its functions, once needed

local function get_refusing()
  refusing = refusing or load_refusing()
  return refusing
end

local function reserve(id, shortlist, requests, tokens, lasts)
  local start, count = length + 1, unpack_from("<I2", ARGV[5], shortlist)
  length = start
  for i = 1, count do
    local number = unpack_from("<I2", ARGV[5], shortlist + 2 * i)
    local deployment = opened[number] or open_deployment(number)
    local retry_at, reason = now, nil
    if not fits(deployment, requests, tokens) then
      retry_at, reason = get_refusing().room_at(deployment, requests, tokens)
    end
    if retry_at == now then
      local s, expires = deployment.scope, now + lasts
      numbers[start] = 4 * i - 3
      add_reservation(id, lasts, requests, tokens, deployment.name, take(deployment, requests, tokens))
      if expires > s[2] then s[2] = expires end
      touch(s)
      if deployment.due then
        numbers[start] = 4 * i - 2
        get_refusing().probe(deployment)
      end
      return
    end
    refusing.refuse(deployment, retry_at, reason)
  end
  numbers[start] = 4 * count
end

-- The rest ---------------------------------------------------------------------------------------------------

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
  if change > 0 and s[9] ~= "" and s[b] ~= DAILY then get_changing().count(s, metric, change) end
end

local function settle(id, used_requests, used_tokens)
  local requests, tokens, name, marks, is_format_2 = remove_reservation(id)
  if not requests then return end
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
    local deployment = opened[number] or open_deployment(number)
    local s, all, cooling = deployment.scope, deployment.terms, deployment.cooling
    reply(#all, cooling and get_refusing().describe(cooling) or 0)
    for _, terms in ipairs(all) do
      local kind = kinds[terms.kind]
      reply(terms.metric, terms.limit)
      reply(kind.used(s, terms.at), kind.resets_at(s, terms.at))
    end
  end
end

-- Read in one command what is likely to be needed: the first candidate of every shortlist.
local function fetch_first()
  local keys, at, last = {}, 1, #ARGV[5]
  local function want(name)
    local key = prefix .. name .. version
    if fetched[key] == nil then
      fetched[key] = false
      keys[#keys + 1] = key
    end
  end
  while at < last do
    local count = unpack_from("<I2", ARGV[5], at)
    if count > 0 then
      local model, others = named((unpack_from("<I2", ARGV[5], at + 2)))
      want(model)
      if others_until > now then get_cooldowns().each(others, want) end
    end
    at = at + 2 + 2 * count
  end
  if not keys[1] then return end
  local values = call("MGET", unpack(keys))
  for i = 1, #keys do
    fetched[keys[i]] = values[i]
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
  local operations, imposed, at = ARGV[4], nil, 1
  fetch_first()
  if settles > 0 then fetch_settled(operations) end
  while at < #operations do
    local kind, argument, requests, tokens, lasts, id, following = unpack_from(OPERATION, operations, at)
    at = following
    if kind == RESERVE then
      reserve(id, argument, requests, tokens, lasts)
    elseif kind == SETTLE then
      settle(id, requests, tokens)
    elseif kind == COOL_DOWN then
      imposed = imposed or cjson.decode(ARGV[9])
      get_cooldowns().impose(imposed[argument])
      opened = {}
    else
      snapshot(argument)
    end
  end
end

local earliest, latest, settles
now, earliest, latest, learnt_for, probe_time, strikes_kept, settles = unpack_from("<I8I8I8I8I8I8I4", ARGV[1], 1)
prefix, version = ARGV[2], ARGV[3]
if now == 0 then
  local time = call("TIME")
  now = time[1] * 1e6 + time[2]
end
local state = call("MGET", KEYS[2], KEYS[3], KEYS[4])
read_sweep(state[1])
corrupt = read_others(state[2], state[3])
if corrupt then return { "corrupt", now, corrupt, {}, {}, 0 } end
if now < earliest or now > latest then return { "again", now, "", {}, {}, 0 } end
run(settles)
if missing_zone then return { "again", now, missing_zone, {}, {}, 0 } end
if corrupt then return { "corrupt", now, corrupt, {}, {}, 0 } end
-- Nothing has been written so far: an error up to here, or in the first write, leaves everything as it was.
write_scopes()
write_reservations()
if cooldowns then cooldowns.write() end
return { "ok", now, "", descriptions, numbers, lifts }
