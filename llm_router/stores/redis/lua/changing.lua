-- What becomes of a ledger when the way in which its quota refills changes.
--
-- The store knows nothing but what the former ledger says. So the new one begins with the most that may still count,
-- and nothing beyond the limit is admitted because of the change. A daily ledger is kept aside for the rest of its day:
-- what is taken meanwhile counts for it as well, and it goes on when the quota is daily again.

local function load_changing()
  local DEBT, AT, TOTAL, RATE = 1, 2, 3, 4 -- of a steady ledger
  local LAST, STARTS = 6, 3                -- of a rolling and of a daily one

  local changing = {}

  -- The daily ledger that is kept aside for a metric, as a ledger with index 0, or nil; and the others.
  local function find_aside(s, metric)
    local found, others = nil, ""
    for kept, rest in string.gmatch(s[9], "(%d) ([^;]*);") do
      if tonumber(kept) == metric then
        local used, carry, starts, ends, guard, zone = match(rest, "^(%d+) (%d+) (%d+) (%d+) (%d+) (%S+)$")
        found = {}
        found[1], found[2], found[3], found[4], found[5], found[9] =
          tonumber(used), tonumber(carry), tonumber(starts), tonumber(ends), tonumber(guard), zone
      else
        others = others .. kept .. " " .. rest .. ";"
      end
    end
    return found, others
  end

  local function set_aside(s, metric, ledger, b, others)
    local kept = format("%d %d %d %d %d %d", metric, unpack(ledger, b + 1, b + 5))
    s[9] = others .. kept .. " " .. ledger[b + 9] .. ";"
  end

  -- Count a taking from another ledger of a metric for the daily one that is kept aside.
  function changing.count(s, metric, amount)
    local aside, others = find_aside(s, metric)
    if not aside then return end
    local daily = kind_of(DAILY)
    daily.open(aside, 0)
    daily.take(aside, 0, amount)
    set_aside(s, metric, aside, 0, others)
  end

  function changing.count_all(s, all, requests, tokens)
    for _, terms in ipairs(all) do
      if not terms.daily then changing.count(s, terms.metric, terms.tokens and tokens or requests) end
    end
  end

  -- How much was taken from the former ledger that may still count since a time, and until when.
  local function taken_since(former, kind, start)
    if kind == ROLLING then return former[USED], former[LAST] end
    if kind == DAILY then return former[USED], now end
    local at = min(former[AT], now)
    if at <= start then return 0, at end
    -- What the debt was then, and what drained before: no more can have been taken since the start.
    return max(0, ceil(min(former[TOTAL], former[DEBT] + former[RATE] * (at - start)) - 1e-6)), at
  end

  -- Replace a ledger by one of the kind of the terms.
  function changing.replace(s, terms)
    local b, metric, former_kind = terms.at, terms.metric, s[terms.at]
    local kind, former = kind_of(terms.kind), {}
    if kind_of(former_kind).open(s, b) then touch(s) end
    for i = 0, LEDGER - 1 do
      former[i], s[b + i] = s[b + i], 0
    end
    s[b], s[b + LEDGER - 1] = terms.kind, ""
    local aside, others = find_aside(s, metric)
    if former_kind == DAILY and former[USED] + former[CARRY] > 0 then
      set_aside(s, metric, former, 0, others)
    elseif terms.kind == DAILY and aside then
      for i, value in pairs(aside) do
        s[b + i] = value
      end
      s[9] = others
    end
    kind.configure(s, b, terms)
    kind.open(s, b)
    local start = terms.daily and s[b + STARTS] or now - terms.span
    kind.begin(s, b, taken_since(former, former_kind, start))
  end

  return changing
end

local changing -- its functions, once needed
