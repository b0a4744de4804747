-- Runs the operations of one batch in their order, as one atomic step.
--
-- Input. KEYS: the hash of reservations, and the key of its sweeping (holds.lua). The keys of scopes are touched
-- besides: `prefix` and the name of a scope; they share the hash tag of KEYS.
-- ARGV[1]: JSON (moments in microseconds):
--   now          the caller's clock; 0 for the server's
--   deadline     the server's moment after which nothing may be done, since the caller has gone; 0 for none
--   prefix       what the key of a scope is called before its name
--   learnt_for   how long a learnt limit holds
--   zones        time zone -> five consecutive midnights, the caller's now lying between the first two
--   profiles     number -> quotas: [metric 1-4, "R"/"S"/"D", limit, window, window + guard, guard, capacity, zone]
--   width        bytes of a deployment in ARGV[2]
--   shortlists   lists of deployments, by number from 1
--   ids          reservation ids
--   cooldowns    [scope, until, until exact, description, [metric, limit, …]]
--   operations   flat, six numbers each, unused ones 0; other lists are referred to by number from 1
--                  1 reserve: id, shortlist, requests, tokens, microseconds until it expires
--                  2 settle: id, 0, requests, tokens used
--                  3 cool down: cooldown
--                  4 snapshot: 0, shortlist
-- ARGV[2]: the deployments, each padded with spaces: "<model's scope> <key's> <provider's> <profile>"
-- ARGV[3]: JSON: four quotas (rpm, tpm, rpd, tpd): how a learnt limit counts where no quota is configured
--
-- Reply: {status, now as text, text, descriptions, numbers}.
--   "ok"       numbers, of each reserve and snapshot in turn:
--                reserve: how many were refused, whether the next one was taken (1 or 0); of each refusal the
--                  reason (a metric, or 4 + the number of a description), retry_at and wake_at; if one was taken,
--                  used and limit of its tightest quota and of its tightest daily one
--                snapshot, of each deployment: how many quotas, the number of the description of its cooldown
--                  or 0; of each quota the metric, the limit, used, resets_at
--   "again"    nothing was done: the caller's idea of the server's time is wrong, or `text` names a time zone
--              that is needed
--   "corrupt"  nothing was done: `text` is a key that holds something else

local RESERVE, SETTLE, COOL_DOWN = 1, 2, 3
local STRIDE = 6
local METRICS = 4

local batch = cjson.decode(ARGV[1])
local operations, shortlists, ids = batch.operations, batch.shortlists, batch.ids
local records, width = ARGV[2], batch.width

local opened = {}         -- deployment -> what it consists of, under the limits in force
local profiles = {}       -- profile -> its quotas, decoded
local numbers = {}        -- the reply
local length = 0          -- how many numbers there are
local descriptions = {}   -- what the reply refers to
local numbered = {}       -- description -> its number

local function describe(text)
  if not numbered[text] then
    descriptions[#descriptions + 1] = text
    numbered[text] = #descriptions
  end
  return numbered[text]
end

local function reply(a, b, c, d)
  numbers[length + 1], numbers[length + 2], numbers[length + 3], numbers[length + 4] = a, b, c, d
  length = length + (d and 4 or c and 3 or 2)
end

-- Deployments ------------------------------------------------------------------------------------------------

local function decode_quota(fields)
  return {
    metric = fields[1],
    tokens = fields[1] % 2 == 0,
    class = KINDS[fields[2]],
    limit = fields[3],
    window = fields[4],
    span = fields[5],
    guard = fields[6],
    capacity = fields[7],
    zone = fields[8],
  }
end

local function get_profile(number)
  local quotas = profiles[number]
  if not quotas then
    quotas = {}
    for i, fields in ipairs(batch.profiles[number]) do
      quotas[i] = decode_quota(fields)
    end
    profiles[number] = quotas
  end
  return quotas
end

-- Find or make the ledger of a quota, under the limit in force; `holds_until` tells when a learnt one ends.
local function open_ledger(scope, quota, limit, holds_until)
  local metric, class = quota.metric, quota.class
  local ledger = scope.ledgers[metric]
  local is_new = not ledger or ledger.class ~= class
  if is_new then
    ledger = class.new()
    scope.ledgers[metric] = ledger
  end
  ledger.metric, ledger.tokens, ledger.holds_until = metric, quota.tokens, holds_until
  -- A settle, which is not told of limits, goes by those in force when the ledger was last looked at.
  if class.configure(ledger, quota, limit) and not is_new then touch(scope) end
  class.open(ledger)
  return ledger
end

-- The quotas of a scope under the limits learnt for it, which lower what is configured and add what is not.
local function open_ledgers(scope, quotas)
  local ledgers = {}
  if not scope.learnt[1] then
    for i = 1, #quotas do
      ledgers[i] = open_ledger(scope, quotas[i], quotas[i].limit, NEVER)
    end
    return ledgers
  end
  local learnt = {}
  for _, entry in ipairs(scope.learnt) do
    if entry[3] > now then learnt[entry[1]] = entry end
  end
  for i, quota in ipairs(quotas) do
    local entry = learnt[quota.metric]
    if entry and entry[2] < quota.limit then
      ledgers[i] = open_ledger(scope, quota, entry[2], entry[3])
    else
      ledgers[i] = open_ledger(scope, quota, quota.limit, NEVER)
    end
    learnt[quota.metric] = nil
  end
  for metric = 1, METRICS do
    local entry = learnt[metric]
    if entry then
      insert(ledgers, open_ledger(scope, decode_quota(cjson.decode(ARGV[3])[metric]), entry[2], entry[3]))
    end
  end
  return ledgers
end

-- The names of the three scopes of a deployment, and its profile.
local function describe_deployment(number)
  return match(records, "^(%S+) (%S+) (%S+) (%d+)", (number - 1) * width + 1)
end

-- The cooldown that ends last among those of these scopes, or nil.
local function latest_cooldown(...)
  local latest
  for i = 1, 3 do
    local cooldown = find_cooldown((select(i, ...)))
    if cooldown and (not latest or exact(cooldown[2]) > exact(latest[2])) then latest = cooldown end
  end
  return latest
end

-- A deployment is opened once a batch, and again after a cooldown.
local function open_deployment(number)
  local name, key, provider, profile = describe_deployment(number)
  local scope = get_scope(name)
  local deployment = {
    scope = scope,
    ledgers = open_ledgers(scope, get_profile(profile)),
    cooldown = latest_cooldown(name, key, provider),
  }
  opened[number] = deployment
  return deployment
end

-- Reserve ----------------------------------------------------------------------------------------------------

-- When a demand fits (now, if it does), and what is in the way the longest.
local function room_at(deployment, requests, tokens)
  local latest, reason = now, 0
  local cooldown, ledgers = deployment.cooldown, deployment.ledgers
  if cooldown then latest, reason = cooldown[1], METRICS + describe(cooldown[3]) end
  for i = 1, #ledgers do
    local ledger = ledgers[i]
    local amount = ledger.tokens and tokens or requests
    if amount > 0 then
      local moment = ledger.class.room_at(ledger, amount)
      if moment > now then
        moment = min(moment, ledger.holds_until) -- a learnt limit of 0 does not hold for ever
        if moment > latest then latest, reason = moment, ledger.metric end
      end
    end
  end
  return latest, reason
end

-- Take what fits, say what remains, and return the marks as they are stored.
local function take(deployment, requests, tokens)
  local ledgers, marks, remarked = deployment.ledgers, deployment.marks, false
  local share, used, limit = 1, 0, 1
  local daily_share, daily_used, daily_limit = 1, 0, 1
  if not marks then
    marks = {}
    deployment.marks = marks
  end
  for i = 1, #ledgers do
    local ledger = ledgers[i]
    local class = ledger.class
    local mark = class.take(ledger, ledger.tokens and tokens or requests)
    if mark ~= marks[i] then marks[i], remarked = mark, true end
    local taken, most = class.used(ledger), ledger.limit
    if taken >= most then taken, most = 1, 1 end
    local remains = 1 - taken / most
    if class == daily then
      if remains < daily_share then daily_share, daily_used, daily_limit = remains, taken, most end
    elseif remains < share then
      share, used, limit = remains, taken, most
    end
  end
  if remarked then
    local text = ""
    for i = 1, #ledgers do
      text = text .. " " .. digits(ledgers[i].metric) .. " " .. digits(marks[i])
    end
    deployment.marked = text
  end
  reply(used, limit, daily_used, daily_limit)
  return deployment.marked or ""
end

local function reserve(id, shortlist, requests, tokens, lasts)
  local start = length
  reply(#shortlist, 0)
  for i = 1, #shortlist do
    local deployment = opened[shortlist[i]] or open_deployment(shortlist[i])
    local retry_at, reason = room_at(deployment, requests, tokens)
    if retry_at == now then
      numbers[start + 1], numbers[start + 2] = i - 1, 1
      local marks = take(deployment, requests, tokens)
      local scope, expires = deployment.scope, now + lasts
      add_hold(id, expires, requests, tokens, scope.name, marks)
      if expires > scope.kept_until then scope.kept_until = expires end
      touch(scope)
      return
    end
    reply(reason, retry_at, min(retry_at, (room_at(deployment, 1, 1))))
  end
end

-- The rest ---------------------------------------------------------------------------------------------------

local function correct(name, marks, requests, tokens)
  local scope = get_scope(name)
  for metric, mark in string.gmatch(marks, "(%d) (%d+)") do
    metric = tonumber(metric)
    local change = metric % 2 == 0 and tokens or requests
    local ledger = scope.ledgers[metric]
    if ledger and change ~= 0 then ledger.class.correct(ledger, tonumber(mark), change) end
  end
  touch(scope)
end

local function settle(id, used_requests, used_tokens)
  local expires, requests, tokens, name, marks = remove_hold(id)
  if not expires or now >= expires then return end
  requests, tokens = used_requests - requests, used_tokens - tokens
  if requests ~= 0 or tokens ~= 0 then correct(name, marks, requests, tokens) end
end

local function put_aside(order)
  local scope, learnt = get_scope(order[1]), order[5]
  cool_down(scope, order)
  for i = 1, #learnt, 2 do
    learn(scope, learnt[i], learnt[i + 1], now + batch.learnt_for)
  end
  opened = {}
end

local function snapshot(shortlist)
  for i = 1, #shortlist do
    local deployment = opened[shortlist[i]] or open_deployment(shortlist[i])
    local cooldown, ledgers = deployment.cooldown, deployment.ledgers
    reply(#ledgers, cooldown and describe(cooldown[3]) or 0)
    for _, ledger in ipairs(ledgers) do
      reply(ledger.metric, ledger.limit, ledger.class.used(ledger), ledger.class.resets_at(ledger))
    end
  end
end

-- Read at once what is likely to be looked at: the first choice of every shortlist, and what is settled.
local function fetch()
  local keys, settled = { KEYS[2] }, {}
  fetched[KEYS[2]] = false
  local function add(name)
    local key = prefix .. name
    if fetched[key] == nil then
      fetched[key] = false
      keys[#keys + 1] = key
    end
  end
  local seen = {}
  for _, shortlist in ipairs(shortlists) do
    local first = shortlist[1]
    if first and not seen[first] then
      seen[first] = true
      local model, key, provider = describe_deployment(first)
      add(model)
      add(key)
      add(provider)
    end
  end
  local values = call("MGET", unpack(keys))
  for i = 1, #keys do
    fetched[keys[i]] = values[i]
  end
  for i = 1, #operations, STRIDE do
    if operations[i] == SETTLE then settled[#settled + 1] = ids[operations[i + 1]] end
  end
  fetch_holds(settled)
end

local function run()
  for i = 1, #operations, STRIDE do
    local kind, subject, list = operations[i], operations[i + 1], operations[i + 2]
    if kind == RESERVE then
      reserve(ids[subject], shortlists[list], operations[i + 3], operations[i + 4], operations[i + 5])
    elseif kind == SETTLE then
      settle(ids[subject], operations[i + 3], operations[i + 4])
    elseif kind == COOL_DOWN then
      put_aside(batch.cooldowns[subject])
    else
      snapshot(shortlists[list])
    end
  end
end

-- Whether the caller knows what time it is here, and still waits for an answer.
local function is_timely()
  for _, midnights in pairs(zones) do
    if now < midnights[1] or now >= midnights[3] then return false end
  end
  return batch.deadline == 0 or now <= batch.deadline
end

now, zones, prefix = batch.now, batch.zones, batch.prefix
if now == 0 then
  local time = call("TIME")
  now = time[1] * 1e6 + time[2]
end
if not is_timely() then return { "again", format("%d", now), "", {}, {} } end
fetch()
run()
if missing_zone then return { "again", format("%d", now), missing_zone, {}, {} } end
if corrupt then return { "corrupt", format("%d", now), corrupt, {}, {} } end
-- Nothing has been written so far: an error up to here, and in the first write, leaves everything as it was.
write_scopes()
write_holds()
return { "ok", format("%d", now), "", descriptions, numbers }
