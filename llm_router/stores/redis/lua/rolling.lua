-- The ledger of a rolling quota; ledgers.lua describes its functions.

local function load_rolling()
  local rooms = {} -- scope -> block -> excess amount -> when there is room: many refusals have the same answer

  local entries -- their functions, once needed

  local function get_entries()
    entries = entries or load_entries()
    return entries
  end

  local function changed(s)
    if rooms[s] then rooms[s] = nil end
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
    local moved = false
    if s[b + LAST] > now then
      get_entries().set_back(s, b)
      moved = true
    elseif s[SET_BACK] ~= "" then
      moved = get_entries().look(s, b)
    end
    if moved then changed(s) end
    local due, horizon = s[b + DUE], now - s[b + SPAN]
    if due > 0 and due <= horizon then expire(s, b, horizon) end
    return moved
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
      if #s[b + LOG] >= MAX_ENTRIES * WIDTH then get_entries().sweep(s, b) end
      changed(s)
    end
    return at
  end

  function rolling.correct(s, b, mark, change)
    if mark > now then mark = get_entries().mark_of(s, b) end
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
      get_entries().insert(s, b, mark, change)
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

  function rolling.begin(s, b, amount, at)
    if amount == 0 or at <= now - s[b + SPAN] then return end
    s[b + USED], s[b + DUE], s[b + FIRST], s[b + LAST], s[b + AMOUNT] = amount, at, at, at, amount
  end

  function rolling.import(_, _, text) return get_entries().import(text) end

  return rolling
end
