-- The stored state of a scope: the ledgers of a (project, model), the limits learnt for it, its cooldown.
--
-- Each scope is one value, so that a call reads and writes it at most once. In the script it is an array:
--   1  version of this format
--   2  when the last reservation on it is forgotten
--   3  when its cooldown ends; 0 if there is none
--   4  the same as the caller gave it, as text: seconds, or inf
--   5  description of the cooldown
--   6  learnt limits, as text: metric, limit and end of each, a space after every number
--   7  four ledgers (ledgers.lua), for metric 1 to 4, nine fields each; the kind is 0 if there is no ledger
-- followed by what is not stored: the name of the scope, its key, whether it is stored, whether it changed.
-- Times are in microseconds.

local METRICS = 4
local FIRST_LEDGER, LEDGER = 7, 9
local FIELDS = FIRST_LEDGER - 1 + METRICS * LEDGER
local NAME, KEY, STORED, CHANGED = FIELDS + 1, FIELDS + 2, FIELDS + 3, FIELDS + 4

local prefix         -- the key of a scope is this and the name of the scope; set by batch.lua
local scopes = {}    -- name -> the scope
local touched = {}   -- the scopes that changed, in order
local others_until   -- when the last cooldown of a key or provider ends, or later; KEYS[3], read by batch.lua
local others_written -- whether that must be written

local function touch(s)
  if not s[CHANGED] then
    s[CHANGED] = true
    touched[#touched + 1] = s
  end
end

local function exact(text)
  if text == "inf" then return math.huge end
  return tonumber(text)
end

-- Milliseconds for which to keep what matters until a given time.
local function time_to_live(moment)
  local SLACK = 60 * 1e6              -- how much longer than needed a key is kept: the caller's clock may differ
  local MAXIMUM = 366 * 86400 * 1e6   -- a quarantine is forgotten after a year in which nothing changes
  return digits(ceil(min(moment - now + SLACK, MAXIMUM) / 1000))
end

-- The learnt limits of a scope that are in force: metric -> {limit, end}; nil if there are none.
local function learnt_limits(s)
  if s[6] == "" then return nil end
  local learnt
  for metric, limit, ends in string.gmatch(s[6], "(%d+) (%d+) (%d+) ") do
    if tonumber(ends) > now then
      learnt = learnt or {}
      learnt[tonumber(metric)] = { tonumber(limit), tonumber(ends) }
    end
  end
  return learnt
end

local function set_learnt_limits(s, learnt)
  s[6] = ""
  for metric, entry in pairs(learnt) do
    s[6] = s[6] .. digits(metric) .. " " .. digits(entry[1]) .. " " .. digits(entry[2]) .. " "
  end
end

local read, get_scope, write_scopes = (function()
  local VERSION = 2
  local LAYOUT = "<BddsssBdddddddsBdddddddsBdddddddsBddddddds"

  local function decode(value)
    if struct then return byte(value) == VERSION and { struct.unpack(LAYOUT, value) } end
    local is_json, s = pcall(cjson.decode, value)
    return is_json and type(s) == "table" and s[1] == VERSION and s
  end

  local function encode(s)
    if struct then return struct.pack(LAYOUT, unpack(s, 1, FIELDS)) end
    return cjson.encode({ unpack(s, 1, FIELDS) })
  end

  local function empty()
    local s = { VERSION, 0, 0, "", "", "" }
    for b = FIRST_LEDGER, FIELDS, LEDGER do
      for i = b, b + LEDGER - 2 do
        s[i] = 0
      end
      s[b + LEDGER - 1] = ""
    end
    return s
  end

  local function read_key(key)
    local value = fetched[key]
    if value == nil then
      value = call("GET", key)
      fetched[key] = value
    end
    return value
  end

  -- Return the scope with a name; an empty one if nothing is stored.
  local function get(name)
    local s = scopes[name]
    if s then return s end
    local key = prefix .. name
    local value = read_key(key)
    s = value and decode(value)
    if value and not s then corrupt = corrupt or key end
    s = s or empty()
    s[NAME], s[KEY], s[STORED], s[CHANGED] = name, key, value and true or false, false
    scopes[name] = s
    return s
  end

  -- Drop what has ended, and return until when the scope must be kept.
  local function tidy(s)
    local kept_until = s[2]
    if s[3] > now then kept_until = max(kept_until, s[3]) else s[3], s[4], s[5] = 0, "", "" end
    if s[6] ~= "" then
      local learnt = learnt_limits(s) or {}
      set_learnt_limits(s, learnt)
      for _, entry in pairs(learnt) do
        kept_until = max(kept_until, entry[2])
      end
    end
    for b = FIRST_LEDGER, FIELDS, LEDGER do
      if s[b] ~= 0 then
        local ends = kind_of(s[b]).kept_until(s, b)
        if ends > kept_until then kept_until = ends end
      end
    end
    return kept_until
  end

  local function write()
    for i = 1, #touched do
      local s = touched[i]
      -- MGET ignores a key of another type; GET refuses it, before anything is written.
      if not s[STORED] then call("GET", s[KEY]) end
    end
    for i = 1, #touched do
      local s = touched[i]
      local kept_until = tidy(s)
      if kept_until > now then
        call("SET", s[KEY], encode(s), "PX", time_to_live(kept_until))
      elseif s[STORED] then
        call("DEL", s[KEY])
      end
    end
    if others_written then call("SET", KEYS[3], digits(others_until), "PX", time_to_live(others_until)) end
  end

  return read_key, get, write
end)()

-- Cooldowns and learnt limits --------------------------------------------------------------------------------

-- The scope with a name if it is cooling down now, or nil.
local function find_cooling(name)
  if not scopes[name] and not read(prefix .. name) then return nil end
  local s = get_scope(name)
  return s[3] > now and s or nil
end

-- `cooldown`: {scope, until, until exact, description, {metric, limit, …}}; see batch.lua.
local function cool_down(cooldown, learnt_until)
  local s, ends, text, limits = get_scope(cooldown[1]), cooldown[2], cooldown[3], cooldown[5]
  if text == "-inf" then
    s[3], s[4], s[5] = 0, "", ""
  elseif ends > now and (s[3] <= now or exact(text) > exact(s[4])) then
    s[3], s[4], s[5] = ends, text, cooldown[4]
    if sub(cooldown[1], 1, 6) ~= "model:" and ends > others_until then
      others_until, others_written = ends, true
    end
  end
  if limits[1] then
    local learnt = learnt_limits(s) or {}
    for i = 1, #limits, 2 do
      local known = learnt[limits[i]]
      learnt[limits[i]] = { known and min(known[1], limits[i + 1]) or limits[i + 1], learnt_until }
    end
    set_learnt_limits(s, learnt)
  end
  touch(s)
end
