-- The entries of a rolling ledger (rolling.lua), and what is rare there: what needs all of them.
--
-- The newest entry is kept as three numbers: the times of the first and the last taking merged into it, and what they
-- took together; last = 0 means that there is none. The log holds the same numbers of the older ones, packed, oldest
-- first, with strictly increasing first times. Only the entries that are needed are decoded.

local DUE, SPAN, RESOLUTION, FIRST, LAST, AMOUNT, LOG = 2, 3, 4, 5, 6, 7, 9 -- DUE: the last time of the oldest entry
local MAX_ENTRIES = 2 * 240 -- as in stores/ledger/
local WIDTH = struct and 24 or 48

-- The first time, the last time and the amount of an entry.
local function entry_at(log, entry)
  return unpack_from("<ddd", log, (entry - 1) * WIDTH + 1)
end

local function logged(first, last, amount)
  return struct.pack("<ddd", first, last, amount)
end

if not struct then -- fakeredis
  function entry_at(log, entry)
    local at = entry * 48
    local first, last, amount = sub(log, at - 47, at - 32), sub(log, at - 31, at - 16), sub(log, at - 15, at)
    return tonumber(first), tonumber(last), tonumber(amount)
  end
  function logged(first, last, amount) return format("%016d%016d%016d", first, last, amount) end
end

-- Scope -> block -> the oldest entries, as far as they were decoded to see when there is room: how much they took up to
-- each, and their times. However many demands are refused, each entry is decoded at most once in a call.
local decoded = {}

local function set_due(s, b)
  local log, _, last = s[b + LOG], 0, s[b + LAST]
  if log ~= "" then
    _, last = entry_at(log, 1)
  end
  s[b + DUE] = last
end

-- What is rarely needed. Lists are of {first, last, amount}.
local function load_entries()
  local entries = {}

  local function unfold(s, b)
    local list, log = {}, s[b + LOG]
    for entry = 1, #log / WIDTH do
      local first, last, amount = entry_at(log, entry)
      list[entry] = { first, last, amount }
    end
    if s[b + LAST] > 0 then insert(list, { s[b + FIRST], s[b + LAST], s[b + AMOUNT] }) end
    return list
  end

  local function fold(s, b, list)
    local newest = table.remove(list) or { 0, 0, 0 }
    for i, entry in ipairs(list) do
      list[i] = logged(entry[1], entry[2], entry[3])
    end
    s[b + LOG] = concat(list)
    s[b + FIRST], s[b + LAST], s[b + AMOUNT] = newest[1], newest[2], newest[3]
    set_due(s, b)
  end

  local function without_empty(list)
    local kept = {}
    for _, entry in ipairs(list) do
      if entry[3] ~= 0 then insert(kept, entry) end
    end
    return kept
  end

  -- Sweep out the entries that were given back completely.
  function entries.sweep(s, b) fold(s, b, without_empty(unfold(s, b))) end

  -- Insert a taking that has no entry: it took nothing, or was given back completely and swept out.
  function entries.insert(s, b, mark, amount)
    local list = unfold(s, b)
    if #list >= MAX_ENTRIES then list = without_empty(list) end
    local index, crowded = #list, #list >= MAX_ENTRIES
    while index > 0 and list[index][1] > mark do
      index = index - 1
    end
    local before, after = list[index], list[index + 1]
    if before and (mark - before[1] <= s[b + RESOLUTION] or crowded) then
      before[2], before[3] = max(mark, before[2]), before[3] + amount
    elseif crowded then
      after[1], after[3] = mark, after[3] + amount
    else
      insert(list, index + 1, { mark, mark, amount })
    end
    s[b + USED] = s[b + USED] + amount
    fold(s, b, list)
  end

  -- The place in a list of the last entry that starts at or before a time; 0 if none does.
  local function place_of(list, at)
    local low, high = 1, #list
    while low <= high do
      local middle = floor((low + high) / 2)
      if list[middle][1] <= at then low = middle + 1 else high = middle - 1 end
    end
    return high
  end

  -- Insert takings {time, requests, tokens, …}, none of them in the future, of which the requests (1) or the tokens (2)
  -- count. The entries are decoded and encoded once for all of them.
  function entries.charge(s, b, takings, which)
    local list, total, is_swept, horizon = unfold(s, b), 0, false, now - s[b + SPAN]
    for i = 1, #takings, 3 do
      local at, amount = takings[i], takings[i + which]
      if amount > 0 and at > horizon then
        if #list >= MAX_ENTRIES and not is_swept then list, is_swept = without_empty(list), true end
        local index, crowded = place_of(list, at), #list >= MAX_ENTRIES
        local before, after = list[index], list[index + 1]
        if before and (at <= before[2] or at - before[1] <= s[b + RESOLUTION] or crowded) then
          before[2], before[3] = max(at, before[2]), before[3] + amount
        elseif crowded then
          after[1], after[3] = at, after[3] + amount
        else
          insert(list, index + 1, { at, at, amount })
        end
        total = total + amount
      end
    end
    spent = spent + #list + #takings / 3
    s[b + USED] = s[b + USED] + total
    fold(s, b, list)
    decoded[s] = nil
  end

  -- The log, from that of format 2, which had 16 digits for each number.
  function entries.import(_, _, text)
    local list = {}
    for at = 0, #text - 48, 48 do
      local first, last, amount = sub(text, at + 1, at + 16), sub(text, at + 17, at + 32), sub(text, at + 33, at + 48)
      insert(list, logged(tonumber(first), tonumber(last), tonumber(amount)))
    end
    return concat(list)
  end

  -- The numbers of some entries, from one on, as one list.
  local function numbers_at(log, entry, count)
    if struct then return { unpack_from("<" .. string.rep("ddd", count), log, (entry - 1) * WIDTH + 1) } end
    local values = {}
    for i = 1, count do
      values[3 * i - 2], values[3 * i - 1], values[3 * i] = entry_at(log, entry + i - 1)
    end
    return values
  end

  -- The oldest entries that took an amount together, and at least so many; or as many as there are in the log.
  local function decode(s, b, amount, least)
    local known = decoded[s] or {}
    local found = known[b] or { sums = {}, times = {}, count = 0, total = 0 }
    decoded[s], known[b] = known, found
    local log, sums, times, count, total = s[b + LOG], found.sums, found.times, found.count, found.total
    local entries = #log / WIDTH
    while (total < amount or count < least) and count < entries do
      local more = min(16, entries - count)
      local values = numbers_at(log, count + 1, more)
      for i = 2, 3 * more, 3 do
        count, total = count + 1, total + values[i + 1]
        sums[count], times[count] = total, values[i]
      end
    end
    spent = spent + 0.3 * (count - found.count)
    found.count, found.total = count, total
    return found
  end

  function entries.find_room(s, b, excess)
    local found = decode(s, b, excess, 0)
    if found.total < excess then
      if excess > found.total + s[b + AMOUNT] then
        error("the entries of a rolling ledger do not add up to what is taken")
      end
      return s[b + LAST] + s[b + SPAN]
    end
    local low, high, sums = 1, found.count, found.sums
    while low < high do
      local middle = floor((low + high) / 2)
      if sums[middle] < excess then low = middle + 1 else high = middle end
    end
    return found.times[low] + s[b + SPAN]
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
  function entries.correct_logged(s, b, mark, change)
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

  function entries.resets_at(s, b)
    if s[b + AMOUNT] > 0 then return s[b + LAST] + s[b + SPAN] end
    local log = s[b + LOG]
    for entry = #log / WIDTH, 1, -1 do
      local _, last, amount = entry_at(log, entry)
      if amount > 0 then return last + s[b + SPAN] end
    end
    return now
  end

  function entries.holds(s, b)
    return s[b + LAST], s[b + DUE] > 0 and s[b + DUE] + s[b + SPAN] or NEVER
  end

  function entries.steps(s, b, terms, amount, least, most)
    local FEW, MANY = 8, 256
    local span, room, latest = s[b + SPAN], terms.limit - s[b + USED], terms.limit_expires
    local found, steps, length = decode(s, b, 2 * amount - room, FEW), {}, 0
    local sums, times, count = found.sums, found.times, min(found.count, MANY)
    if count == #s[b + LOG] / WIDTH and s[b + LAST] > 0 then -- all of them, so the newest one as well
      count = count + 1
      sums[count], times[count] = found.total + s[b + AMOUNT], s[b + LAST]
    end
    for entry = 1, count do
      local fits = room + sums[entry]
      if fits > least and least < most then
        least = fits < most and fits or most
        steps[length + 1], steps[length + 2] = least, min(times[entry] + span, latest)
        length = length + 2
      end
    end
    sums[found.count + 1] = nil
    return steps
  end

  function entries.begin(s, b, amount, at)
    if amount == 0 or at <= now - s[b + SPAN] then return end
    s[b + USED], s[b + DUE], s[b + FIRST], s[b + LAST], s[b + AMOUNT] = amount, at, at, at, amount
  end

  -- Clocks that are set back.
  --
  -- What was taken later than now counts as taken now. The scope remembers for each ledger (its index b), for a while,
  -- when that was, by how much, and when the ledger was last looked at: if nothing looks at it for as long as the
  -- clock was set back by, the clock may have been set forward again, and what was taken since moves forward with it.

  local function remember(s, b, at, jump, seen)
    local others = string.gsub(s[SET_BACK], "(%d+) [^;]*;", function(index)
      if tonumber(index) == b then return "" end
    end)
    s[SET_BACK] = at and others .. format("%d %d %d %d;", b, at, jump, seen) or others
  end

  local function recall(s, b)
    for index, at, jump, seen in string.gmatch(s[SET_BACK], "(%d+) (%d+) (%d+) (%d+);") do
      if tonumber(index) == b then return tonumber(at), tonumber(jump), tonumber(seen) end
    end
  end

  -- The newest entry is later than now.
  function entries.set_back(s, b)
    local list, merged = unfold(s, b), { now, now, 0 }
    remember(s, b, now, list[#list][2] - now, now)
    while #list > 0 and list[#list][2] > now do
      local entry = table.remove(list)
      merged[1], merged[3] = min(merged[1], entry[1]), merged[3] + entry[3]
    end
    local before = list[#list]
    if before and before[1] >= merged[1] then
      before[2], before[3] = now, before[3] + merged[3]
    else
      insert(list, merged)
    end
    fold(s, b, list)
  end

  local function set_forward(s, b, at, jump)
    local list = unfold(s, b)
    for _, entry in ipairs(list) do
      if entry[2] >= at then
        entry[2] = entry[2] + jump
        if entry[1] >= at then entry[1] = entry[1] + jump end
      end
    end
    fold(s, b, list)
  end

  -- The clock was set back a while ago, for some ledger of the scope. Returns whether it was for this one.
  function entries.look(s, b)
    local at, jump, seen = recall(s, b)
    if not at then return false end
    if s[b + LAST] > 0 and now - seen >= jump then
      set_forward(s, b, at, jump)
      remember(s, b)
    elseif s[b + LAST] == 0 or now - at >= min(jump, s[b + SPAN]) then
      remember(s, b)
    else
      remember(s, b, at, jump, now)
    end
    return true
  end

  -- Where to find what was taken at a mark that is later than now.
  function entries.mark_of(s, b)
    local at = recall(s, b)
    return at and at > now - s[b + SPAN] and at or now
  end

  return entries
end
