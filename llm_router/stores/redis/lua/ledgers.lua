-- The arithmetic of one quota, as in llm_router/stores/ledger.py; the differential test holds the two together.
--
-- Amounts are in requests or tokens, moments in whole microseconds since the Unix epoch (doubles hold them
-- exactly). `now` is the same for all that one script call does, so a ledger is brought up to it when it is
-- opened, and never looks at the past again.
--
-- Each kind of ledger has the same functions:
--   new()                           an empty one
--   decode(fields), encode(ledger)  from and to the stored form: an array whose first field names the kind
--   configure(ledger, quota, limit) go on under these limits; tells whether that changes what is stored;
--                                   `quota` as in batch.lua
--   open(ledger)                    bring it up to now
--   room_at(ledger, amount)         now if the amount fits, else the moment it will, or NEVER
--   take(ledger, amount)            take it; returns the mark by which it can be corrected
--   correct(ledger, mark, change)   change what was taken at the mark
--   used(ledger), resets_at(ledger)
--   kept_until(ledger)              when nothing of it matters any more

local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local format, sub, match, find = string.format, string.sub, string.match, string.find
local concat, insert, remove = table.concat, table.insert, table.remove

local NEVER = 2 ^ 62
local EXACT_LIMIT, SLICES = 240, 240
local MOST_ENTRIES = 2 * SLICES
local EPSILON = 1e-6
local LONGEST_DAY = 25 * 3600 * 1e6

local now           -- microseconds, set by batch.lua
local zones = {}    -- time zone -> consecutive midnights, now lying before the third; set by batch.lua
local missing_zone  -- a time zone that a stored ledger needs and the caller did not send

-- Rolling ----------------------------------------------------------------------------------------------------
-- Stored: "R", used, span, resolution, log, and then three numbers for each of the newest entries: the moments of
-- the first and the last taking merged into it, and what they took together. The log holds the older entries,
-- 48 digits each. Of its entries those numbered `at` to `count` are live; `tail` holds the newest ones, and those
-- made or changed since, as {first, last, amount}. Decoding only what is looked at is what makes a long log
-- cheap. The first moments rise strictly.

local WIDTH = 48
local LONGEST_TAIL = 1  -- entries stored as numbers; the others go to the log
local HEAD = 5
local rolling = {}

function rolling.new()
  return { class = rolling, used = 0, span = 0, resolution = 0, log = "", at = 1, count = 0, tail = {} }
end

function rolling.decode(fields)
  local log, tail = fields[5], {}
  for i = HEAD + 1, #fields, 3 do
    tail[#tail + 1] = { fields[i], fields[i + 1], fields[i + 2] }
  end
  return {
    class = rolling,
    used = fields[2],
    span = fields[3],
    resolution = fields[4],
    log = log,
    at = 1,
    count = #log / WIDTH,
    tail = tail,
  }
end

local function live_log(ledger, tail)
  local log = ledger.at == 1 and ledger.log or sub(ledger.log, (ledger.at - 1) * WIDTH + 1)
  if #tail <= LONGEST_TAIL then return log, 1 end
  local parts = { log }
  for i = 1, #tail - 1 do
    local entry = tail[i]
    parts[i + 1] = format("%016d%016d%016d", entry[1], entry[2], entry[3])
  end
  return concat(parts), #tail
end

function rolling.encode(ledger)
  local tail = ledger.tail
  local log, from = live_log(ledger, tail)
  local fields = { "R", ledger.used, ledger.span, ledger.resolution, log }
  local length = HEAD
  for i = from, #tail do
    local entry = tail[i]
    fields[length + 1], fields[length + 2], fields[length + 3] = entry[1], entry[2], entry[3]
    length = length + 3
  end
  return fields
end

local function last_of(ledger, i)
  local at = (i - 1) * WIDTH
  return tonumber(sub(ledger.log, at + 17, at + 32))
end

local function amount_of(ledger, i)
  local at = (i - 1) * WIDTH
  return tonumber(sub(ledger.log, at + 33, at + 48))
end

local function decoded(ledger, i)
  local at = (i - 1) * WIDTH
  return { tonumber(sub(ledger.log, at + 1, at + 16)), last_of(ledger, i), amount_of(ledger, i) }
end

-- Put every live entry but those of amount 0, if `sweeping`, into the tail.
local function unfold(ledger, sweeping)
  local entries = {}
  for i = ledger.at, ledger.count do
    entries[#entries + 1] = decoded(ledger, i)
  end
  for _, entry in ipairs(ledger.tail) do
    entries[#entries + 1] = entry
  end
  if sweeping then
    local kept = {}
    for _, entry in ipairs(entries) do
      if entry[3] ~= 0 then kept[#kept + 1] = entry end
    end
    entries = kept
  end
  ledger.log, ledger.at, ledger.count, ledger.tail = "", 1, 0, entries
end

function rolling.configure(ledger, quota, limit)
  local span, resolution = quota.span, limit <= EXACT_LIMIT and 0 or floor(quota.window / SLICES)
  local changes = ledger.span ~= span or ledger.resolution ~= resolution
  ledger.limit, ledger.span, ledger.resolution, ledger.known = limit, span, resolution, nil
  return changes
end

function rolling.open(ledger)
  local horizon, tail = now - ledger.span, ledger.tail
  while ledger.at <= ledger.count and last_of(ledger, ledger.at) <= horizon do
    ledger.used = ledger.used - amount_of(ledger, ledger.at)
    ledger.at = ledger.at + 1
  end
  while ledger.at > ledger.count and tail[1] and tail[1][2] <= horizon do
    ledger.used = ledger.used - remove(tail, 1)[3]
  end
end

local function find_room(ledger, excess)
  for i = ledger.at, ledger.count do
    excess = excess - amount_of(ledger, i)
    if excess <= 0 then return last_of(ledger, i) + ledger.span end
  end
  for _, entry in ipairs(ledger.tail) do
    excess = excess - entry[3]
    if excess <= 0 then return entry[2] + ledger.span end
  end
  return error("the entries of a rolling ledger do not add up to what it says is used")
end

function rolling.room_at(ledger, amount)
  local excess = ledger.used + amount - ledger.limit
  if excess <= 0 then return now end
  if amount > ledger.limit then return NEVER end
  -- Refused requests come in crowds: remember the answer until the entries change.
  local known = ledger.known
  if not known then
    known = {}
    ledger.known = known
  end
  if not known[excess] then known[excess] = find_room(ledger, excess) end
  return known[excess]
end

function rolling.take(ledger, amount)
  local tail = ledger.tail
  local newest, at = tail[#tail], now
  ledger.known = nil
  if not newest and ledger.at <= ledger.count then
    newest = decoded(ledger, ledger.count)
    ledger.count = ledger.count - 1
    ledger.log = sub(ledger.log, 1, ledger.count * WIDTH)
    tail[1] = newest
  end
  if newest then
    if at < newest[2] then at = newest[2] end -- a clock set back must not bring anything back early
    if at - newest[1] <= ledger.resolution then
      newest[2] = at
      newest[3] = newest[3] + amount
      ledger.used = ledger.used + amount
      return newest[1]
    end
  end
  if amount > 0 then
    ledger.used = ledger.used + amount
    tail[#tail + 1] = { at, at, amount }
    if ledger.count - ledger.at + 1 + #tail > MOST_ENTRIES then unfold(ledger, true) end
  end
  return at
end

-- Return the number of the last logged entry that starts at or before the mark; ledger.at - 1 if none does.
local function find_logged(ledger, mark)
  local low, high, wanted = ledger.at, ledger.count, format("%016d", mark)
  while low <= high do
    local middle = floor((low + high) / 2)
    local at = (middle - 1) * WIDTH
    if sub(ledger.log, at + 1, at + 16) <= wanted then low = middle + 1 else high = middle - 1 end
  end
  return high
end

-- Put in a taking after entry number `index` of the unfolded ledger, merging it where it would be by now.
local function insert_taking(ledger, index, mark, amount)
  local before = ledger.tail[index]
  ledger.used = ledger.used + amount
  if before and (mark - before[1] <= ledger.resolution or #ledger.tail > MOST_ENTRIES) then
    before[2] = mark
    before[3] = before[3] + amount
  else
    insert(ledger.tail, index + 1, { mark, mark, amount })
  end
end

local function correct_logged(ledger, mark, change)
  local index = find_logged(ledger, mark)
  if index < ledger.at or last_of(ledger, index) < mark then return false end
  local at, amount = (index - 1) * WIDTH, amount_of(ledger, index)
  change = max(change, -amount)
  if change ~= 0 then
    ledger.log = concat({ sub(ledger.log, 1, at + 32), format("%016d", amount + change), sub(ledger.log, at + 49) })
    ledger.used = ledger.used + change
  end
  return true
end

local function correct_tail(ledger, mark, change)
  local tail, index = ledger.tail, #ledger.tail
  while index > 0 and tail[index][1] > mark do
    index = index - 1
  end
  local entry = tail[index]
  if not entry or entry[2] < mark then return false, index end
  change = max(change, -entry[3])
  entry[3] = entry[3] + change
  ledger.used = ledger.used + change
  return true
end

local function oldest_moment(ledger)
  if ledger.at <= ledger.count then return decoded(ledger, ledger.at)[1] end
  return ledger.tail[1] and ledger.tail[1][1]
end

function rolling.correct(ledger, mark, change)
  if mark <= now - ledger.span then
    local oldest = oldest_moment(ledger)
    if not oldest or mark < oldest then return end
  end
  ledger.known = nil
  local tail = ledger.tail
  if not tail[1] or mark < tail[1][1] then
    if correct_logged(ledger, mark, change) or change <= 0 then return end
    unfold(ledger, false)
  end
  local found, index = correct_tail(ledger, mark, change)
  if found or change <= 0 then return end
  -- The taking was one of 0, or was given back whole and swept out.
  index = index + ledger.count - ledger.at + 1
  unfold(ledger, false)
  insert_taking(ledger, index, mark, change)
end

function rolling.used(ledger)
  return ledger.used
end

function rolling.resets_at(ledger)
  for i = #ledger.tail, 1, -1 do
    if ledger.tail[i][3] > 0 then return ledger.tail[i][2] + ledger.span end
  end
  for i = ledger.count, ledger.at, -1 do
    if amount_of(ledger, i) > 0 then return last_of(ledger, i) + ledger.span end
  end
  return now
end

function rolling.kept_until(ledger)
  local newest = ledger.tail[#ledger.tail]
  if newest then return newest[2] + ledger.span end
  if ledger.at > ledger.count then return now end
  return last_of(ledger, ledger.count) + ledger.span
end

-- Steady -----------------------------------------------------------------------------------------------------
-- Stored: "S", a debt that drains at a constant rate, the moment at which it was that, how much was ever taken,
-- and the rate.

local steady = {}

function steady.new()
  return { class = steady, debt = 0, at = 0, total = 0, rate = 0 }
end

function steady.decode(fields)
  return { class = steady, debt = fields[2], at = fields[3], total = fields[4], rate = fields[5] }
end

function steady.encode(ledger)
  return { "S", ledger.debt, ledger.at, ledger.total, ledger.rate }
end

function steady.configure(ledger, quota, limit)
  ledger.limit = limit
  ledger.capacity = min(quota.capacity, limit)
  local spread = limit - ledger.capacity + (quota.guard > 0 and 1 or 0)
  local rate = max(spread, 1) / quota.span
  local changes = ledger.rate ~= rate
  ledger.rate = rate
  return changes
end

function steady.open() end

local function drained(ledger)
  if now <= ledger.at then return ledger.debt end
  return max(0, ledger.debt - (now - ledger.at) * ledger.rate)
end

local function drain(ledger)
  ledger.debt = drained(ledger)
  ledger.at = max(now, ledger.at)
end

function steady.room_at(ledger, amount)
  local excess = drained(ledger) + amount - ledger.capacity
  if excess <= EPSILON then return now end
  if amount > ledger.capacity then return NEVER end
  return max(now, ledger.at) + ceil((excess - EPSILON / 2) / ledger.rate)
end

function steady.take(ledger, amount)
  drain(ledger)
  ledger.debt = ledger.debt + amount
  ledger.total = ledger.total + amount
  return ledger.total
end

function steady.correct(ledger, mark, change)
  drain(ledger)
  if change > 0 then
    ledger.debt = ledger.debt + change
    ledger.total = ledger.total + change
  elseif mark <= ledger.total then
    ledger.debt = max(ledger.debt + change, min(ledger.debt, ledger.total - mark))
  end
end

function steady.used(ledger)
  return max(0, ceil(drained(ledger) - EPSILON))
end

function steady.resets_at(ledger)
  local debt = drained(ledger)
  if debt <= 0 then return now end
  return max(now, ledger.at) + ceil(debt / ledger.rate)
end

steady.kept_until = steady.resets_at

-- Daily ------------------------------------------------------------------------------------------------------
-- Stored: "D", what is taken between two midnights, what of it was taken within the guard before the second and so
-- counts on both sides, the midnights, the guard and the time zone.

local daily = {}

function daily.new()
  return { class = daily, used = 0, carry = 0, starts = 0, ends = 0, guard = 0, zone = "" }
end

function daily.decode(fields)
  return {
    class = daily,
    used = fields[2],
    carry = fields[3],
    starts = fields[4],
    ends = fields[5],
    guard = fields[6],
    zone = fields[7],
  }
end

function daily.encode(ledger)
  return { "D", ledger.used, ledger.carry, ledger.starts, ledger.ends, ledger.guard, ledger.zone }
end

function daily.configure(ledger, quota, limit)
  local changes = ledger.guard ~= quota.guard or ledger.zone ~= quota.zone
  ledger.limit, ledger.guard, ledger.zone = limit, quota.guard, quota.zone
  return changes
end

-- The first midnight of the zone after a moment that is not before today.
local function midnight_after(zone, moment)
  for _, midnight in ipairs(zones[zone] or {}) do
    if midnight > moment then return midnight end
  end
  return moment + LONGEST_DAY
end

function daily.open(ledger)
  if not zones[ledger.zone] then missing_zone = ledger.zone end
  if missing_zone or now < ledger.ends then return end
  local midnights = zones[ledger.zone]
  local starts = now < midnights[2] and midnights[1] or midnights[2]
  -- Only what was taken right before *this* midnight can count on this side of it.
  ledger.used = starts == ledger.ends and ledger.carry or 0
  ledger.carry = 0
  ledger.starts, ledger.ends = starts, midnight_after(ledger.zone, now)
end

function daily.room_at(ledger, amount)
  if ledger.used + amount <= ledger.limit and ledger.carry + amount <= ledger.limit then return now end
  if amount > ledger.limit then return NEVER end
  if ledger.carry + amount <= ledger.limit then return ledger.ends end
  return midnight_after(ledger.zone, ledger.ends)
end

function daily.take(ledger, amount)
  ledger.used = ledger.used + amount
  if now >= ledger.ends - ledger.guard then ledger.carry = ledger.carry + amount end
  return max(now, ledger.starts)
end

function daily.correct(ledger, mark, change)
  if mark >= ledger.starts - ledger.guard then ledger.used = max(0, ledger.used + change) end
  if mark >= ledger.ends - ledger.guard then ledger.carry = max(0, ledger.carry + change) end
end

function daily.used(ledger)
  return ledger.used
end

function daily.resets_at(ledger)
  if ledger.used == 0 then return now end
  return ledger.carry > 0 and midnight_after(ledger.zone, ledger.ends) or ledger.ends
end

function daily.kept_until(ledger)
  return ledger.carry > 0 and ledger.ends + LONGEST_DAY or ledger.ends
end

local KINDS = { R = rolling, S = steady, D = daily }
