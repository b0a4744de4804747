-- The ledger of a daily quota; ledgers.lua describes its functions.
--
-- What is taken between two midnights, how much of it was taken within the guard before the second and so counts on
-- both sides, the midnights, the guard; and, as text, the time zone.

local function load_daily()
  local STARTS, ENDS, GUARD, ZONE = 3, 4, 5, 9
  local LONGEST_DAY = 25 * 3600 * 1e6
  local NEAR = 3600 * 1e6 -- set back over midnight by no more than this, the day stays: which one it really is, is open

  local zones         -- time zone -> consecutive midnights, now lying before the third; nil until they are needed

  local function midnights_of(zone)
    if not zones then
      local at = 1
      zones = {}
      while at < #ARGV[8] do
        local name, first, second, third, fourth, fifth, following = unpack_from("<sI8I8I8I8I8", ARGV[8], at)
        at, zones[name] = following, { first, second, third, fourth, fifth }
      end
    end
    return zones[zone]
  end

  -- The first midnight of the zone after a time that is not before today.
  local function midnight_after(zone, moment)
    for _, midnight in ipairs(midnights_of(zone) or {}) do
      if midnight > moment then return midnight end
    end
    return moment + LONGEST_DAY
  end

  local daily = {}

  local function load_rarely()
    function daily.resets_at(s, b)
      if s[b + USED] == 0 then return now end
      return s[b + CARRY] > 0 and midnight_after(s[b + ZONE], s[b + ENDS]) or s[b + ENDS]
    end

    function daily.holds(s, b) return s[b + STARTS], s[b + ENDS] end

    function daily.steps(s, b, terms, _, least, most)
      local fits = min(terms.limit - s[b + CARRY], most)
      return fits > least and { fits, min(s[b + ENDS], terms.limit_expires) } or {}
    end

    function daily.begin(s, b, amount)
      if amount > s[b + USED] then daily.take(s, b, amount - s[b + USED]) end
    end

    function daily.import(_, _, text) return text end
  end

  setmetatable(daily, {
    __index = function(_, name)
      load_rarely()
      return rawget(daily, name)
    end,
  })

  function daily.configure(s, b, terms)
    if s[b + GUARD] == terms.guard and s[b + ZONE] == terms.zone then return false end
    s[b + GUARD], s[b + ZONE] = terms.guard, terms.zone
    return true
  end

  function daily.open(s, b)
    local starts, ends = s[b + STARTS], s[b + ENDS]
    if now < ends and now >= starts - NEAR then return false end
    local midnights = midnights_of(s[b + ZONE])
    if not midnights then missing_zone = s[b + ZONE] end
    if missing_zone then return false end
    s[b + STARTS], s[b + ENDS] = now < midnights[2] and midnights[1] or midnights[2], midnight_after(s[b + ZONE], now)
    if now < starts then -- the clock was set back: what was taken counts today
      s[b + CARRY] = now >= s[b + ENDS] - s[b + GUARD] and s[b + USED] or 0
      return true
    end
    -- Only what was taken right before *this* midnight can count on this side of it.
    s[b + USED], s[b + CARRY] = s[b + STARTS] == ends and s[b + CARRY] or 0, 0
    return false
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
    if mark >= s[b + ENDS] then mark = s[b + STARTS] end -- from before the clock was set back
    if mark >= s[b + STARTS] - s[b + GUARD] then s[b + USED] = max(0, s[b + USED] + change) end
    if mark >= s[b + ENDS] - s[b + GUARD] then s[b + CARRY] = max(0, s[b + CARRY] + change) end
  end

  function daily.used(s, b) return s[b + USED] end

  function daily.kept_until(s, b)
    return s[b + CARRY] > 0 and s[b + ENDS] + LONGEST_DAY or s[b + ENDS]
  end

  return daily
end
