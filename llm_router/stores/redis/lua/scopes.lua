-- What is stored of one scope: the ledgers of a (project, model), the limits learnt for it, its cooldown.
--
-- One value a scope, so that a call reads and writes each at most once: a packed array of
--   version       of this format
--   kept until    when its last reservation is forgotten
--   cooldown      {until, until exact, description}, or 0 if there is none
--   learnt        {metric, limit, until} of each learnt limit
--   ledgers       metric, ledger (see ledgers.lua), metric, ledger, …
--
-- Moments are in microseconds; `until exact` is what the caller gave, as text: seconds, or inf.

local VERSION = 1
local SLACK = 60 * 1e6              -- how much longer than needed a key is kept: the caller's clock may differ
local LONGEST = 366 * 86400 * 1e6   -- a quarantine is forgotten after a year without a word

-- Every server has MessagePack; fakeredis has only JSON, which there keeps all digits.
local codec = cmsgpack or { pack = cjson.encode, unpack = cjson.decode }

local call = redis.call

local prefix         -- what the key of a scope is called before its name; set by batch.lua
local fetched = {}   -- key -> its value, or false
local scopes = {}    -- name -> the scope, decoded
local touched = {}   -- the scopes that changed, in order
local corrupt        -- a key whose value is not ours

local function exact(text)
  if text == "inf" then return math.huge end
  return tonumber(text)
end

local function decode_ledgers(stored)
  local ledgers = {}
  for i = 1, #stored, 2 do
    local class = KINDS[stored[i + 1][1]]
    local ledger = class.decode(stored[i + 1])
    class.open(ledger)
    ledgers[stored[i]] = ledger
  end
  return ledgers
end

-- Return the scope in a value; nil if it is not ours.
local function decode_scope(name, key, value)
  local is_packed, stored = pcall(codec.unpack, value)
  if not is_packed or type(stored) ~= "table" or stored[1] ~= VERSION then return nil end
  local cooldown = stored[3]
  return {
    name = name,
    key = key,
    stored = true,
    kept_until = stored[2],
    cooldown = cooldown ~= 0 and cooldown or nil,
    learnt = stored[4],
    ledgers = decode_ledgers(stored[5]),
  }
end

local function new_scope(name, key)
  return { name = name, key = key, kept_until = 0, learnt = {}, ledgers = {} }
end

local function read(key)
  local value = fetched[key]
  if value == nil then
    value = call("GET", key)
    fetched[key] = value
  end
  return value
end

-- Return the scope of a name; an empty one where nothing is stored.
local function get_scope(name)
  local scope = scopes[name]
  if scope then return scope end
  local key = prefix .. name
  local value = read(key)
  if value then
    scope = decode_scope(name, key, value)
    if not scope then corrupt = corrupt or key end
  end
  scope = scope or new_scope(name, key)
  scopes[name] = scope
  return scope
end

local function touch(scope)
  if not scope.changed then
    scope.changed = true
    touched[#touched + 1] = scope
  end
end

local function encode_scope(scope)
  local kept_until, cooldown, learnt, ledgers = scope.kept_until, 0, {}, {}
  if scope.cooldown and scope.cooldown[1] > now then
    cooldown = scope.cooldown
    kept_until = max(kept_until, cooldown[1])
  end
  for _, entry in ipairs(scope.learnt) do
    if entry[3] > now then
      insert(learnt, entry)
      kept_until = max(kept_until, entry[3])
    end
  end
  for metric, ledger in pairs(scope.ledgers) do
    local class, at = ledger.class, #ledgers
    ledgers[at + 1], ledgers[at + 2] = metric, class.encode(ledger)
    local until_ = class.kept_until(ledger)
    if until_ > kept_until then kept_until = until_ end
  end
  return codec.pack({ VERSION, scope.kept_until, cooldown, learnt, ledgers }), kept_until
end

-- Milliseconds for which to keep what matters until a moment.
local function time_to_live(moment)
  return format("%d", ceil(min(moment - now + SLACK, LONGEST) / 1000))
end

local function write_scopes()
  for _, scope in ipairs(touched) do
    -- MGET says nothing of a key of another type; GET refuses it, before anything is written.
    if not scope.stored then call("GET", scope.key) end
  end
  for _, scope in ipairs(touched) do
    local value, kept_until = encode_scope(scope)
    if kept_until > now then
      call("SET", scope.key, value, "PX", time_to_live(kept_until))
    elseif scope.stored then
      call("DEL", scope.key)
    end
  end
end

-- Cooldowns and learnt limits --------------------------------------------------------------------------------

local function active_cooldown(scope)
  local cooldown = scope.cooldown
  if cooldown and cooldown[1] > now then return cooldown end
  return nil
end

-- The cooldown that puts the scope of a name aside now, or nil.
local function find_cooldown(name)
  if not scopes[name] and not read(prefix .. name) then return nil end
  return active_cooldown(get_scope(name))
end

-- `order`: {scope, until, until exact, description, {metric, limit, …}}; see batch.lua.
local function cool_down(scope, order)
  local until_us, text = order[2], order[3]
  local present = active_cooldown(scope)
  if text == "-inf" then
    scope.cooldown = nil
  elseif until_us > now and (not present or exact(text) > exact(present[2])) then
    scope.cooldown = { until_us, text, order[4] }
  end
  touch(scope)
end

local function learn(scope, metric, limit, until_us)
  for _, learnt in ipairs(scope.learnt) do
    if learnt[1] == metric then
      if learnt[3] > now then limit = min(limit, learnt[2]) end
      learnt[2], learnt[3] = limit, until_us
      return
    end
  end
  insert(scope.learnt, { metric, limit, until_us })
end
