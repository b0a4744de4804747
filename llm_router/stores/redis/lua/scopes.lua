-- Reading and writing scopes, and until when they are kept.

local prefix, version -- the key of a scope is its name between these two; set by batch.lua
local full_prefix    -- the key of its companion is this and its name; set by batch.lua
-- For how long a request that probes a half-open cooldown keeps others waiting, for how long an ended one is
-- remembered, and for how long a learnt limit applies; set by batch.lua
local probe_time, strikes_kept, learnt_for
local scopes = {}    -- name -> the scope

-- Milliseconds for which to keep what matters until a given time.
local function time_to_live(moment)
  local SLACK = 60 * 1e6              -- how much longer than needed a key is kept: the caller's clock may differ
  local MAXIMUM = 366 * 86400 * 1e6   -- a quarantine is forgotten after a year in which nothing changes
  return digits(ceil(min(moment - now + SLACK, MAXIMUM) / 1000))
end

-- When the cooldown of a scope no longer matters; 0 if it has none.
local function forgotten_at(s)
  return s[5] == 1 and s[3] + strikes_kept or s[3]
end

-- What is rarely needed of scopes.
local function load_rare()
  local rare = {}

  local FORMERLY_FOR = 86400 * 1e6 -- how long earlier versions kept a learnt limit
  local STATED = 2
  local AT_ONCE = 1000 -- limits learnt at one moment are each a microsecond later, and so a little ahead of the clock

  -- The learnt limits of a scope that are not forgotten: metric -> {limit, source, when it was learnt, what it is raised
  -- to, when}; and whether the clock was set back.
  function rare.learnt_limits(s)
    local learnt, is_set_back, text = {}, false, s[8]
    for metric, limit, ends, at in string.gmatch(text, "(%d+) (%d+) (%d+) ()") do
      local source, learnt_at, raised, raise_at = match(text, "^:(%d+),(%d+),(%d+),(%d+);", at)
      local entry
      if source then
        entry = { tonumber(limit), tonumber(source), tonumber(learnt_at), tonumber(raised), tonumber(raise_at) }
      else
        entry = { tonumber(limit), STATED, tonumber(ends) - FORMERLY_FOR, tonumber(limit), NEVER }
      end
      if entry[3] > now + AT_ONCE then
        if entry[5] < NEVER then entry[5] = now + entry[5] - entry[3] end
        entry[3], is_set_back = now, true
      end
      if entry[3] + learnt_for > now then learnt[tonumber(metric)] = entry end
    end
    return learnt, is_set_back
  end

  function rare.set_learnt_limits(s, learnt)
    local parts = {}
    for metric, entry in pairs(learnt) do
      local limit, source, learnt_at, raised, raise_at = unpack(entry)
      insert(parts, digits(metric) .. " " .. digits(limit) .. " " .. digits(learnt_at + learnt_for) .. " :")
      insert(parts, concat({ digits(source), digits(learnt_at), digits(raised), digits(raise_at) }, ",") .. ";")
    end
    s[8] = concat(parts)
  end

  -- Learn a limit of a scope: `change` is {metric, limit, what it is raised to, after how long, source, replaces}; see
  -- batch.lua.
  function rare.learn(learnt, change)
    local metric, limit, raised, after, source, replaces = unpack(change)
    local present = learnt[metric]
    if replaces >= 0 and replaces ~= (present and present[3] or 0) then return end
    -- Two of one microsecond must differ, or the second of two that replace the same one would be obeyed, too.
    local learnt_at = present and max(now, present[3] + 1) or now
    learnt[metric] = limit >= 0 and { limit, source, learnt_at, raised, min(now + after, NEVER) } or nil
  end

  -- The limit in force of a learnt one, when that changes, and since when it is in force.
  function rare.in_force(entry)
    local forgotten = entry[3] + learnt_for
    if now >= entry[5] then return entry[4], forgotten, entry[5] end
    return entry[1], min(entry[5], forgotten), entry[3]
  end

  -- Whether a quota of a profile is adaptive; the flags are in batch.lua.
  function rare.is_adaptive(flags, metric)
    return floor(flags / 2 ^ (metric + 2)) % 2 == 1
  end

  -- Drop the learnt limits that are forgotten, and return when the last of the others will be.
  function rare.tidy_limits(s)
    if s[8] == "" then return 0 end
    local learnt, latest = rare.learnt_limits(s), 0
    rare.set_learnt_limits(s, learnt)
    for _, entry in pairs(learnt) do
      latest = max(latest, entry[3] + learnt_for)
    end
    return latest
  end

  -- Drop the daily ledgers kept aside whose days have ended, and return when the last of the others does.
  function rare.tidy_aside(s)
    local LONGEST_DAY, latest = 25 * 3600 * 1e6, 0
    s[9] = string.gsub(s[9], "%d %d+ (%d+) %d+ (%d+) [^;]*;", function(carry, ends)
      ends = tonumber(ends) + (carry == "0" and 0 or LONGEST_DAY)
      latest = max(latest, ends)
      if ends <= now then return "" end
    end)
    return latest
  end

  -- What stands for the cooldown of a scope that cannot be read, whose end and description say which it is.
  function rare.unreadable(name)
    local UNREADABLE_FOR = 60 * 1e6
    local ends = now + UNREADABLE_FOR
    local text = format("%d.%06d", floor(ends / 1e6), ends % 1e6)
    return { [3] = ends, [6] = text, [7] = cjson.encode({ scope = name, reason = "" }) }
  end

  -- Whether terms would change how a ledger of the scope counts.
  function rare.differs(s, all)
    for _, terms in ipairs(all) do
      local b = terms.at
      if s[b] ~= 0 then
        if s[b] ~= terms.kind then return true end
        local before = { unpack(s, b, b + LEDGER - 1) }
        if kind_of(s[b]).configure(s, b, terms) then
          for i = 1, LEDGER do
            s[b + i - 1] = before[i]
          end
          return true
        end
      end
    end
    return false
  end

  -- A copy of the scope that is never written.
  function rare.copy(s)
    local copy = { unpack(s, 1, FOREIGN) }
    copy[CHANGED] = true
    return copy
  end

  -- The clock was set back since the cooldown was imposed: it does not last for longer than it was to.
  function rare.move_cooldown(s)
    if s[6] ~= "inf" then
      s[3] = now + s[3] - s[4]
      s[6] = format("%d.%06d", floor(s[3] / 1e6), s[3] % 1e6)
    end
    s[4] = now
    touch(s)
  end

  -- Let the record of an earlier epoch go on in this one. The server keeps the order of its writes, so that what was
  -- counted up to the last one is there.
  function rare.renew(s)
    s[FORMER], s[GAP], s[SINCE] = s[SINCE], s[WRITTEN], max(now, epoch, s[SINCE] + 1)
    touch(s)
  end

  -- Fill an empty scope from the value of its key in format 2, which did not say when a cooldown was imposed; return
  -- whether it is one.
  function rare.import(s, value)
    local former
    if struct then
      former = byte(value) == 2 and { struct.unpack("<BddsssBdddddddsBdddddddsBdddddddsBddddddds", value) }
    else
      local is_json, array = pcall(cjson.decode, value)
      former = is_json and type(array) == "table" and array[1] == 2 and array
    end
    if not former then return false end
    s[2], s[3], s[6], s[7], s[8] = unpack(former, 2, 6)
    for metric = 1, METRICS do
      local b, at = FIRST_LEDGER + (metric - 1) * LEDGER, 7 + (metric - 1) * 9
      if former[at] ~= 0 then
        clear_ledger(s, b)
        for i = 0, 7 do
          s[b + i] = former[at + i]
        end
        s[b + LEDGER - 1] = kind_of(s[b]).import(s, b, former[at + 8])
      end
    end
    return true
  end

  return rare
end

local rare -- its functions, once needed

local get_scope, write_scopes, kept_until = (function()
  local VERSION = 3
  -- The last field of a ledger, its text, is stored as its length here; the texts follow.
  local LAYOUT = "<BdddBsssssddddBddddddddI4BddddddddI4BddddddddI4BddddddddI4"
  local HEAD, BLOCK = 15, 11 -- how much of it describes the fields before the ledgers, and a ledger

  -- The scope of a value; false, or an error, if it is not one.
  local function decode(value)
    if not struct then
      local is_json, s = pcall(cjson.decode, value)
      return is_json and type(s) == "table" and s[1] == VERSION and #s == FIELDS and s
    end
    local first = byte(value)
    local count = (first % 128 - VERSION) / 16
    if count ~= floor(count) or count > METRICS then return false end
    local s = { struct.unpack(sub(LAYOUT, 1, HEAD + count * BLOCK), value) }
    local stored = FIRST_LEDGER - 1 + count * LEDGER
    local at = s[stored + 1]
    for text = FIRST_LEDGER + LEDGER - 1, stored, LEDGER do
      local stop = at + s[text]
      if s[text - LEDGER + 1] > DAILY then return false end
      s[text], at = stop > at and sub(value, at, stop - 1) or "", stop
    end
    if at ~= #value + 1 then return false end
    for b = stored + 1, FIELDS, LEDGER do
      s[b] = 0
    end
    s[FULL] = first >= 128
    return s
  end

  -- Ledgers after the last one in use are not stored. Of one that is not there, nothing but its kind is ever looked at.
  local function encode(s)
    local count, texts = METRICS, ""
    while count > 0 and s[FIRST_LEDGER + (count - 1) * LEDGER] == 0 do
      count = count - 1
    end
    if not struct then count = METRICS end
    local stored = FIRST_LEDGER - 1 + count * LEDGER
    for b = FIRST_LEDGER, stored, LEDGER do
      if s[b] == 0 then clear_ledger(s, b) end
    end
    s[1], s[WRITTEN] = VERSION, now
    if not struct then return cjson.encode({ unpack(s, 1, FIELDS) }) end
    for text = FIRST_LEDGER + LEDGER - 1, stored, LEDGER do
      local length = #s[text]
      if length > 0 then texts = texts .. s[text] end
      s[text] = length
    end
    s[1] = VERSION + 16 * count
    return struct.pack(sub(LAYOUT, 1, HEAD + count * BLOCK), unpack(s, 1, stored)) .. texts
  end

  local function empty()
    local s = { VERSION, 0, 0, 0, 0, "", "", "", "", "", max(now, epoch), 0, 0, now }
    for b = FIRST_LEDGER, FIELDS, LEDGER do
      s[b] = 0
    end
    return s
  end

  -- Drop what has ended, and return until when the scope must be kept.
  local function tidy(s)
    local latest = s[2]
    if s[3] > 0 then
      local forgotten = forgotten_at(s)
      if forgotten > now then
        latest = max(latest, forgotten)
      else
        s[3], s[4], s[5], s[6], s[7] = 0, 0, 0, "", ""
      end
    end
    if s[8] ~= "" or s[9] ~= "" then
      rare = rare or load_rare()
      latest = max(latest, rare.tidy_limits(s), rare.tidy_aside(s))
    end
    for b = FIRST_LEDGER, FIELDS, LEDGER do
      if s[b] ~= 0 then
        local ends = kind_of(s[b]).kept_until(s, b)
        if ends > latest then latest = ends end
      end
    end
    return latest
  end

  -- Return the scope with a name; an empty one if nothing is stored, or something else.
  local function get(name)
    local s = scopes[name]
    if s then return s end
    local key = prefix .. name .. version
    local value, is_foreign = fetched[key], false
    -- MGET ignores a key of another type; GET refuses it.
    if not value then value = redis.pcall("GET", key) end
    spent = spent + 6
    if type(value) == "table" then
      value, is_foreign = false, true
    elseif value then
      spent = spent + #value / 2000
      local is_read, found = pcall(decode, value)
      s = is_read and found
      is_foreign = not s
    end
    s = s or empty()
    s[NAME], s[KEY], s[STORED], s[CHANGED], s[FOREIGN] = name, key, value, false, is_foreign and key
    scopes[name] = s
    if is_foreign then return s end
    if not value then
      local former = redis.pcall("GET", prefix .. name)
      if former then
        rare = rare or load_rare()
        local is_read, is_former = pcall(rare.import, s, former)
        if not is_read or not is_former then
          s = empty()
          s[NAME], s[KEY], s[FOREIGN] = name, key, prefix .. name
          scopes[name] = s
          return s
        end
        s[2] = tidy(s) -- from now on this one counts, for as long as the former is there
      end
    elseif s[SINCE] < epoch then
      rare = rare or load_rare()
      rare.renew(s)
    end
    if s[4] > now then
      rare = rare or load_rare()
      rare.move_cooldown(s)
    end
    return s
  end

  local function write()
    local companions = {}
    for i = 1, #touched do
      local s = touched[i]
      if s[FULL] then companions[#companions + 1] = full_prefix .. s[NAME] end
    end
    if companions[1] then call("DEL", unpack(companions)) end
    for i = 1, #touched do
      local s = touched[i]
      local latest = tidy(s)
      if latest > now then
        call("SET", s[KEY], encode(s), "PX", time_to_live(latest))
      elseif s[STORED] then
        call("DEL", s[KEY])
      end
    end
  end

  return get, write, tidy
end)()
