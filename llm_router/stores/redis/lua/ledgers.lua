-- The arithmetic of one quota, as in llm_router/stores/ledger/; the differential test checks that the two agree.
--
-- Amounts are in requests or tokens, times in whole microseconds since the Unix epoch (doubles hold them exactly).
-- `now` is the same throughout one script call.
--
-- A ledger is a block of ten consecutive fields of its scope (scopes.lua), starting at index b: its kind, eight
-- numbers and a text. `terms` are the quota and its limit in force (batch.lua).
--
-- Each kind of ledger has the same functions:
--   configure(s, b, terms)          continue under these terms; returns whether that changes what is stored
--   open(s, b)                      bring it up to now; must be called before any of those below
--   room_at(s, b, amount, terms)    returns now if the amount fits, else when it will, or NEVER
--   take(s, b, amount)              take it; returns the mark by which it can be corrected
--   correct(s, b, mark, change)     change what was taken at the mark
--   used(s, b), resets_at(s, b)
--   kept_until(s, b)                returns until when the ledger must be kept
--   import(s, b, text)              returns its text, from that of format 2; the numbers are the same

local ROLLING, STEADY, DAILY = 1, 2, 3
local USED, CARRY = 1, 2 -- rolling and daily: what is used, once it is open; CARRY: daily only, see there

local zones = {}    -- time zone -> consecutive midnights, now lying before the third; set by batch.lua
local missing_zone  -- a time zone that a stored ledger needs and the caller did not send

-- Rolling ----------------------------------------------------------------------------------------------------
-- The newest entry is kept as three numbers: the times of the first and the last taking merged into it, and what they
-- took together; last = 0 means that there is none. The log holds the same numbers of the older ones, packed, oldest
-- first, with strictly increasing first times. Only the entries that are needed are decoded.

local function load_rolling()
  local DUE, SPAN, RESOLUTION, FIRST, LAST, AMOUNT, LOG = 2, 3, 4, 5, 6, 7, 9 -- DUE: the last time of the oldest entry
  local WIDTH = struct and 24 or 48
  local MAX_ENTRIES = 2 * 240 -- as in stores/ledger/

  local rooms = {} -- scope -> block -> excess amount -> when there is room: many refusals have the same answer

  -- The first time, the last time and the amount of an entry.
  local function entry_at(log, entry)
    return unpack_from("<ddd", log, (entry - 1) * WIDTH + 1)
  end

  -- The same in format 2, and for fakeredis, which has no struct library: 16 digits each.
  local function digits_at(log, entry)
    local at = entry * 48
    local first, last, amount = sub(log, at - 47, at - 32), sub(log, at - 31, at - 16), sub(log, at - 15, at)
    return tonumber(first), tonumber(last), tonumber(amount)
  end

  local function logged(first, last, amount)
    if struct then return struct.pack("<ddd", first, last, amount) end
    return format("%016d%016d%016d", first, last, amount)
  end

  if not struct then entry_at = digits_at end

  local function changed(s)
    if rooms[s] then rooms[s] = nil end
  end

  local function set_due(s, b)
    local log, _, last = s[b + LOG], 0, s[b + LAST]
    if log ~= "" then
      _, last = entry_at(log, 1)
    end
    s[b + DUE] = last
  end

  local function expire(s, b, horizon)
    local log, entry = s[b + LOG], 1
    local count = #log / WIDTH
    while entry <= count do
      local _, last, amount = entry_at(log, entry)
      if last > horizon then break end
      s[b + USED] = s[b + USED] - amount
      entry = entry + 1
    end
    s[b + LOG] = sub(log, (entry - 1) * WIDTH + 1)
    if entry > count and s[b + LAST] <= horizon then
      s[b + USED] = s[b + USED] - s[b + AMOUNT]
      s[b + FIRST], s[b + LAST], s[b + AMOUNT] = 0, 0, 0
    end
    set_due(s, b)
    changed(s)
  end

  local function find_room(s, b, excess)
    local log = s[b + LOG]
    for entry = 1, #log / WIDTH do
      local _, last, amount = entry_at(log, entry)
      excess = excess - amount
      if excess <= 0 then return last + s[b + SPAN] end
    end
    if excess > s[b + AMOUNT] then error("the entries of a rolling ledger do not add up to what is taken") end
    return s[b + LAST] + s[b + SPAN]
  end

  -- The entries as a list of {first, last, amount}, and back: for rare operations.
  local function unfold(s, b)
    local entries, log = {}, s[b + LOG]
    for entry = 1, #log / WIDTH do
      local first, last, amount = entry_at(log, entry)
      entries[entry] = { first, last, amount }
    end
    if s[b + LAST] > 0 then insert(entries, { s[b + FIRST], s[b + LAST], s[b + AMOUNT] }) end
    return entries
  end

  local function fold(s, b, entries)
    local newest = table.remove(entries) or { 0, 0, 0 }
    for i, entry in ipairs(entries) do
      entries[i] = logged(entry[1], entry[2], entry[3])
    end
    s[b + LOG] = concat(entries)
    s[b + FIRST], s[b + LAST], s[b + AMOUNT] = newest[1], newest[2], newest[3]
    set_due(s, b)
  end

  local function sweep(s, b)
    local kept = {}
    for _, entry in ipairs(unfold(s, b)) do
      if entry[3] ~= 0 then insert(kept, entry) end
    end
    fold(s, b, kept)
  end

  -- Insert a taking that has no entry: it took nothing, or was given back completely and swept out.
  local function insert_taking(s, b, mark, amount)
    local entries = unfold(s, b)
    local index = #entries
    while index > 0 and entries[index][1] > mark do
      index = index - 1
    end
    local before = entries[index]
    if before and (mark - before[1] <= s[b + RESOLUTION] or #entries > MAX_ENTRIES) then
      before[2], before[3] = mark, before[3] + amount
    else
      insert(entries, index + 1, { mark, mark, amount })
    end
    s[b + USED] = s[b + USED] + amount
    fold(s, b, entries)
  end

  -- Return the number of the last logged entry that starts at or before the mark; 0 if none does.
  local function find_logged(log, mark)
    local low, high = 1, #log / WIDTH
    while low <= high do
      local middle = floor((low + high) / 2)
      local first = entry_at(log, middle)
      if first <= mark then low = middle + 1 else high = middle - 1 end
    end
    return high
  end

  -- Change the logged entry that contains the mark; return whether there is one.
  local function correct_logged(s, b, mark, change)
    local log = s[b + LOG]
    local entry = find_logged(log, mark)
    if entry == 0 then return false end
    local first, last, amount = entry_at(log, entry)
    if last < mark then return false end
    change = max(change, -amount)
    local at = (entry - 1) * WIDTH
    s[b + LOG] = sub(log, 1, at) .. logged(first, last, amount + change) .. sub(log, at + WIDTH + 1)
    s[b + USED] = s[b + USED] + change
    return true
  end

  local rolling = {}

  function rolling.configure(s, b, terms)
    if s[b + SPAN] == terms.span and s[b + RESOLUTION] == terms.resolution then return false end
    s[b + SPAN], s[b + RESOLUTION] = terms.span, terms.resolution
    changed(s)
    return true
  end

  function rolling.open(s, b)
    local due, horizon = s[b + DUE], now - s[b + SPAN]
    if due > 0 and due <= horizon then expire(s, b, horizon) end
  end

  function rolling.room_at(s, b, amount, terms)
    local excess = s[b + USED] + amount - terms.limit
    if excess <= 0 then return now end
    if amount > terms.limit then return NEVER end
    local known = rooms[s] or {}
    rooms[s] = known
    known[b] = known[b] or {}
    known[b][excess] = known[b][excess] or find_room(s, b, excess)
    return known[b][excess]
  end

  function rolling.take(s, b, amount)
    local last, at = s[b + LAST], now
    if last > 0 then
      if at < last then at = last end -- a clock set back must not return anything early
      if at - s[b + FIRST] <= s[b + RESOLUTION] then
        s[b + LAST], s[b + AMOUNT], s[b + USED] = at, s[b + AMOUNT] + amount, s[b + USED] + amount
        if s[b + LOG] == "" then s[b + DUE] = at end
        if rooms[s] then rooms[s] = nil end
        return s[b + FIRST]
      end
    end
    if amount > 0 then
      if last > 0 then
        s[b + LOG] = s[b + LOG] .. logged(s[b + FIRST], last, s[b + AMOUNT])
      else
        s[b + DUE] = at
      end
      s[b + FIRST], s[b + LAST], s[b + AMOUNT], s[b + USED] = at, at, amount, s[b + USED] + amount
      if #s[b + LOG] >= MAX_ENTRIES * WIDTH then sweep(s, b) end
      changed(s)
    end
    return at
  end

  function rolling.correct(s, b, mark, change)
    local log, first, last = s[b + LOG], s[b + FIRST], s[b + LAST]
    if mark <= now - s[b + SPAN] then
      local oldest = log == "" and first or entry_at(log, 1)
      if last == 0 or mark < oldest then return end
    end
    changed(s)
    if last > 0 and first <= mark and mark <= last then
      change = max(change, -s[b + AMOUNT])
      s[b + AMOUNT], s[b + USED] = s[b + AMOUNT] + change, s[b + USED] + change
    elseif not (log ~= "" and mark < first and correct_logged(s, b, mark, change)) and change > 0 then
      insert_taking(s, b, mark, change)
    end
  end

  function rolling.used(s, b) return s[b + USED] end

  function rolling.resets_at(s, b)
    if s[b + AMOUNT] > 0 then return s[b + LAST] + s[b + SPAN] end
    local log = s[b + LOG]
    for entry = #log / WIDTH, 1, -1 do
      local _, last, amount = entry_at(log, entry)
      if amount > 0 then return last + s[b + SPAN] end
    end
    return now
  end

  function rolling.kept_until(s, b)
    return s[b + LAST] > 0 and s[b + LAST] + s[b + SPAN] or now
  end

  function rolling.import(s, b, text)
    local entries = {}
    for entry = 1, #text / 48 do
      entries[entry] = logged(digits_at(text, entry))
    end
    return concat(entries)
  end

  return rolling
end

-- Steady -----------------------------------------------------------------------------------------------------
-- A debt that drains at a constant rate, when it had that value, the total ever taken, and the rate.

local function load_steady()
  local DEBT, AT, TOTAL, RATE = 1, 2, 3, 4
  local EPSILON = 1e-6 -- as in stores/ledger/

  local function drained(s, b)
    if now <= s[b + AT] then return s[b + DEBT] end
    return max(0, s[b + DEBT] - (now - s[b + AT]) * s[b + RATE])
  end

  local function drain(s, b)
    s[b + DEBT], s[b + AT] = drained(s, b), max(now, s[b + AT])
  end

  local steady = {}

  function steady.configure(s, b, terms)
    local spread = terms.limit - terms.capacity + (terms.guard > 0 and 1 or 0)
    local rate = max(spread, 1) / terms.span
    if s[b + RATE] == rate then return false end
    s[b + RATE] = rate
    return true
  end

  function steady.open() end

  function steady.room_at(s, b, amount, terms)
    local excess = drained(s, b) + amount - terms.capacity
    if excess <= EPSILON then return now end
    if amount > terms.capacity then return NEVER end
    return max(now, s[b + AT]) + ceil((excess - EPSILON / 2) / s[b + RATE])
  end

  function steady.take(s, b, amount)
    drain(s, b)
    s[b + DEBT], s[b + TOTAL] = s[b + DEBT] + amount, s[b + TOTAL] + amount
    return s[b + TOTAL]
  end

  function steady.correct(s, b, mark, change)
    drain(s, b)
    if change > 0 then
      s[b + DEBT], s[b + TOTAL] = s[b + DEBT] + change, s[b + TOTAL] + change
    elseif mark <= s[b + TOTAL] then
      s[b + DEBT] = max(s[b + DEBT] + change, min(s[b + DEBT], s[b + TOTAL] - mark))
    end
  end

  function steady.used(s, b)
    return max(0, ceil(drained(s, b) - EPSILON))
  end

  function steady.resets_at(s, b)
    local debt = drained(s, b)
    if debt <= 0 then return now end
    return max(now, s[b + AT]) + ceil(debt / s[b + RATE])
  end

  steady.kept_until = steady.resets_at

  function steady.import() return "" end

  return steady
end

-- Daily ------------------------------------------------------------------------------------------------------
-- What is taken between two midnights, how much of it was taken within the guard before the second and so counts on
-- both sides, the midnights, the guard; and, as text, the time zone.

local function load_daily()
  local STARTS, ENDS, GUARD, ZONE = 3, 4, 5, 9
  local LONGEST_DAY = 25 * 3600 * 1e6

  -- The first midnight of the zone after a time that is not before today.
  local function midnight_after(zone, moment)
    for _, midnight in ipairs(zones[zone] or {}) do
      if midnight > moment then return midnight end
    end
    return moment + LONGEST_DAY
  end

  local daily = {}

  function daily.configure(s, b, terms)
    if s[b + GUARD] == terms.guard and s[b + ZONE] == terms.zone then return false end
    s[b + GUARD], s[b + ZONE] = terms.guard, terms.zone
    return true
  end

  function daily.open(s, b)
    if now < s[b + ENDS] then return end
    local midnights = zones[s[b + ZONE]]
    if not midnights then missing_zone = s[b + ZONE] end
    if missing_zone then return end
    local starts = now < midnights[2] and midnights[1] or midnights[2]
    -- Only what was taken right before *this* midnight can count on this side of it.
    s[b + USED] = starts == s[b + ENDS] and s[b + CARRY] or 0
    s[b + CARRY], s[b + STARTS], s[b + ENDS] = 0, starts, midnight_after(s[b + ZONE], now)
  end

  function daily.room_at(s, b, amount, terms)
    local limit = terms.limit
    if s[b + USED] + amount <= limit and s[b + CARRY] + amount <= limit then return now end
    if amount > limit then return NEVER end
    if s[b + CARRY] + amount <= limit then return s[b + ENDS] end
    return midnight_after(s[b + ZONE], s[b + ENDS])
  end

  function daily.take(s, b, amount)
    s[b + USED] = s[b + USED] + amount
    if now >= s[b + ENDS] - s[b + GUARD] then s[b + CARRY] = s[b + CARRY] + amount end
    return max(now, s[b + STARTS])
  end

  function daily.correct(s, b, mark, change)
    if mark >= s[b + STARTS] - s[b + GUARD] then s[b + USED] = max(0, s[b + USED] + change) end
    if mark >= s[b + ENDS] - s[b + GUARD] then s[b + CARRY] = max(0, s[b + CARRY] + change) end
  end

  function daily.used(s, b) return s[b + USED] end

  function daily.resets_at(s, b)
    if s[b + USED] == 0 then return now end
    return s[b + CARRY] > 0 and midnight_after(s[b + ZONE], s[b + ENDS]) or s[b + ENDS]
  end

  function daily.kept_until(s, b)
    return s[b + CARRY] > 0 and s[b + ENDS] + LONGEST_DAY or s[b + ENDS]
  end

  function daily.import(_, _, text) return text end

  return daily
end

local kinds = {} -- number -> the functions of a kind of ledger, once needed

local function kind_of(number)
  local kind = kinds[number]
  if not kind then
    kind = ({ load_rolling, load_steady, load_daily })[number]()
    kinds[number] = kind
  end
  return kind
end
