-- The ledger of a rolling quota; ledgers.lua describes its functions.

local function load_rolling()
  local entries -- their functions, once needed

  local function get_entries()
    entries = entries or load_entries()
    return entries
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
    decoded[s] = nil
  end

  local rolling = {}
  setmetatable(rolling, { __index = function(_, name) return get_entries()[name] end })

  function rolling.configure(s, b, terms)
    if s[b + SPAN] == terms.span and s[b + RESOLUTION] == terms.resolution then return false end
    s[b + SPAN], s[b + RESOLUTION] = terms.span, terms.resolution
    decoded[s] = nil
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
    if moved then decoded[s] = nil end
    local due, horizon = s[b + DUE], now - s[b + SPAN]
    if due > 0 and due <= horizon then expire(s, b, horizon) end
    return moved
  end

  function rolling.room_at(s, b, amount, terms)
    local excess = s[b + USED] + amount - terms.limit
    if excess <= 0 then return now end
    if amount > terms.limit then return NEVER end
    return get_entries().find_room(s, b, excess)
  end

  function rolling.take(s, b, amount)
    local last, at = s[b + LAST], now
    if amount == 0 then return at end
    if last > 0 then
      if at - s[b + FIRST] <= s[b + RESOLUTION] then
        s[b + LAST], s[b + AMOUNT], s[b + USED] = at, s[b + AMOUNT] + amount, s[b + USED] + amount
        if s[b + LOG] == "" then s[b + DUE] = at end
        return s[b + FIRST]
      end
      s[b + LOG] = s[b + LOG] .. logged(s[b + FIRST], last, s[b + AMOUNT])
    else
      s[b + DUE] = at
    end
    s[b + FIRST], s[b + LAST], s[b + AMOUNT], s[b + USED] = at, at, amount, s[b + USED] + amount
    if #s[b + LOG] >= MAX_ENTRIES * WIDTH then
      get_entries().sweep(s, b)
      decoded[s] = nil
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
    decoded[s] = nil
    if last > 0 and first <= mark and mark <= last then
      change = max(change, -s[b + AMOUNT])
      s[b + AMOUNT], s[b + USED] = s[b + AMOUNT] + change, s[b + USED] + change
    elseif not (log ~= "" and mark < first and get_entries().correct_logged(s, b, mark, change)) and change > 0 then
      get_entries().insert(s, b, mark, change)
    end
  end

  function rolling.used(s, b) return s[b + USED] end

  function rolling.kept_until(s, b)
    return s[b + LAST] > 0 and s[b + LAST] + s[b + SPAN] or now
  end

  return rolling
end
