-- The ledger of a steady quota; ledgers.lua describes its functions.
--
-- A debt that drains at a constant rate, when it had that value, the total ever taken, and the rate.
--
-- Everything ever taken lies on a line from 0 to the total: a taking ends at its mark. The debt is what lies above a
-- point, up to which the line has drained, less the holes above that point: parts that were given back before they had
-- drained. The text holds the start and the end of each hole, packed, from the lowest to the highest.

local function load_steady()
  local DEBT, AT, TOTAL, RATE, DRAINED, HOLES = 1, 2, 3, 4, 5, 9
  local EPSILON = 1e-6 -- as in stores/ledger/
  local WIDTH = struct and 16 or 50
  local MAX_HOLES = 2 * 240

  local function hole_at(holes, hole)
    if struct then return unpack_from("<dd", holes, (hole - 1) * WIDTH + 1) end
    local start, stop = sub(holes, hole * WIDTH - 49, hole * WIDTH - 25), sub(holes, hole * WIDTH - 24, hole * WIDTH)
    return tonumber(start), tonumber(stop)
  end

  local function packed(start, stop)
    if struct then return struct.pack("<dd", start, stop) end
    return format("%-25s%-25s", format("%.17g", start), format("%.17g", stop))
  end

  local function drained(s, b)
    return max(0, s[b + DEBT] - (now - s[b + AT]) * s[b + RATE])
  end

  -- Move the point up to which the line has drained, past the holes that it reaches.
  local function rise(s, b, amount)
    local point, holes, hole = s[b + DRAINED] + amount, s[b + HOLES], 1
    while hole <= #holes / WIDTH do
      local start, stop = hole_at(holes, hole)
      if start > point then break end
      point, hole = point + stop - start, hole + 1
    end
    s[b + DRAINED] = point
    if hole > 1 then s[b + HOLES] = sub(holes, (hole - 1) * WIDTH + 1) end
  end

  local function set_debt(s, b, debt)
    s[b + DEBT] = debt
    if debt == 0 then s[b + DRAINED], s[b + HOLES] = s[b + TOTAL], "" end
  end

  local function drain(s, b)
    local debt = drained(s, b)
    if s[b + HOLES] == "" then s[b + DRAINED] = s[b + TOTAL] - debt else rise(s, b, s[b + DEBT] - debt) end
    set_debt(s, b, debt)
    s[b + AT] = now
  end

  -- The number of the first hole that ends at a point or later.
  local function find_hole(holes, point)
    local low, high = 1, #holes / WIDTH
    while low <= high do
      local middle = floor((low + high) / 2)
      local _, stop = hole_at(holes, middle)
      if stop < point then low = middle + 1 else high = middle - 1 end
    end
    return low
  end

  -- Give back what lies between two points and was not given back before.
  local function give_back(s, b, low, high)
    local holes, given, from, to = s[b + HOLES], high - low, low, high
    local first = find_hole(holes, low)
    local after = first
    while after <= #holes / WIDTH do
      local start, stop = hole_at(holes, after)
      if start > high then break end
      given = given - max(0, min(stop, high) - max(start, low))
      from, to, after = min(from, start), max(to, stop), after + 1
    end
    holes = sub(holes, 1, (first - 1) * WIDTH) .. packed(from, to) .. sub(holes, (after - 1) * WIDTH + 1)
    if #holes / WIDTH > MAX_HOLES then
      local start, stop = hole_at(holes, 1)
      s[b + DRAINED], holes = s[b + DRAINED] + stop - start, sub(holes, WIDTH + 1) -- as if it had drained
    end
    s[b + HOLES] = holes
    set_debt(s, b, max(0, s[b + DEBT] - given))
  end

  local steady = {}

  function steady.configure(s, b, terms)
    local spread = terms.limit - terms.capacity + (terms.guard > 0 and 1 or 0)
    local rate = max(spread, 1) / terms.span
    if s[b + RATE] == rate then return false end
    s[b + RATE] = rate
    return true
  end

  function steady.open(s, b)
    if s[b + AT] <= now then return false end
    s[b + AT] = now -- the clock was set back: the debt drains from now on
    return true
  end

  function steady.room_at(s, b, amount, terms)
    local excess = drained(s, b) + amount - terms.capacity
    if excess <= EPSILON then return now end
    if amount > terms.capacity then return NEVER end
    return now + ceil((excess - EPSILON / 2) / s[b + RATE])
  end

  function steady.take(s, b, amount)
    drain(s, b)
    s[b + DEBT], s[b + TOTAL] = s[b + DEBT] + amount, s[b + TOTAL] + amount
    return s[b + TOTAL]
  end

  function steady.correct(s, b, mark, change)
    if change > 0 then
      steady.take(s, b, change)
      return
    end
    drain(s, b)
    local low = max(mark + change, s[b + DRAINED])
    if mark <= s[b + TOTAL] and low < mark then give_back(s, b, low, mark) end
  end

  function steady.used(s, b)
    return max(0, ceil(drained(s, b) - EPSILON))
  end

  function steady.resets_at(s, b)
    local debt = drained(s, b)
    if debt <= 0 then return now end
    return now + ceil(debt / s[b + RATE])
  end

  steady.kept_until = steady.resets_at

  function steady.begin(s, b, amount, at)
    s[b + DEBT], s[b + AT], s[b + TOTAL], s[b + DRAINED] = amount, at, amount, 0
  end

  function steady.import(s, b)
    s[b + DRAINED] = s[b + TOTAL] - s[b + DEBT]
    return ""
  end

  return steady
end
