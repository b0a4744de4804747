-- Charges: what was taken without asking, or was lost, is counted whether or not there is room.
--
-- The key of a charge, of a process and a model, holds the sequence of the last one: digits, which are compared with
-- as many zeros before them as make them equally long.

local charge_prefix  -- of the keys of charges; set by batch.lua

local function load_charges()
  local LASTS = 25 * 3600 * 1000 -- as in stores/base.py
  local DIGITS = 20
  local charges = {}
  local made = {}      -- key -> the sequence of the last charge

  -- The last sequence at a key; "" if there is none, nil if it holds something else.
  local function last_at(key)
    local value = made[key] or redis.pcall("GET", key)
    if not value then return "" end
    if type(value) == "table" or not match(value, "^%d+$") then return nil end
    return string.rep("0", DIGITS - #value) .. value
  end

  -- Add to a list of takings those of another one that were made after a time.
  local function collect(list, takings, after)
    for i = 1, #takings, 3 do
      if takings[i] > after then
        local length = #list
        list[length + 1], list[length + 2], list[length + 3] = min(takings[i], now), takings[i + 1], takings[i + 2]
      end
    end
  end

  local function count_each(s, terms, takings, which)
    local kind = kind_of(terms.kind)
    for i = 1, #takings, 3 do
      local at, amount = takings[i], takings[i + which]
      if amount > 0 and terms.daily then
        kind.correct(s, terms.at, at, amount)
      elseif amount > 0 and at > now - terms.span then
        kind.take(s, terms.at, amount) -- how much of it has drained is not known
      end
    end
    spent = spent + #takings / 3
  end

  -- Count takings for a daily ledger that is kept aside.
  local function count_aside(s, terms, takings, which)
    local total = 0
    for i = 1, #takings, 3 do
      total = total + takings[i + which]
    end
    changing = changing or load_changing()
    if total > 0 then changing.count(s, terms.metric, total) end
  end

  -- Count takings, each {time, requests, tokens}, for each quota of a deployment.
  local function count(deployment, takings)
    local s = deployment.scope
    for _, terms in ipairs(deployment.terms) do
      local which = terms.tokens and 2 or 1
      if terms.kind == ROLLING then
        kind_of(ROLLING).charge(s, terms.at, takings, which)
      else
        count_each(s, terms, takings, which)
      end
      if s[9] ~= "" and not terms.daily then count_aside(s, terms, takings, which) end
    end
  end

  -- `charge`: {source, sequence, since, {at, requests, tokens, …}, {at, requests, tokens, …}}; see batch.lua. Return
  -- when the record began, or nil and a key that holds something else.
  function charges.make(deployment, charge)
    local s, sequence, since, missing, counted = deployment.scope, charge[2], charge[3], charge[4], charge[5]
    local key = charge_prefix .. charge[1] .. ":" .. s[NAME]
    local last = last_at(key)
    if not last then return nil, key end
    if s[FOREIGN] and (missing[1] or counted[1]) then return nil, s[FOREIGN] end
    spent = spent + 5
    if sequence <= last then return s[SINCE] end
    made[key] = sequence
    local takings = {}
    collect(takings, missing, -NEVER)
    -- Of what the former record counted, what was counted up to its last write is in this one.
    if since ~= s[SINCE] then collect(takings, counted, since == s[FORMER] and s[GAP] or -NEVER) end
    if takings[1] then count(deployment, takings) end
    s[2] = max(s[2], now + deployment.terms.keeping) -- the caller knows it from now on
    touch(s)
    return s[SINCE]
  end

  function charges.write()
    for key, sequence in pairs(made) do
      call("SET", key, sequence, "PX", digits(LASTS))
    end
  end

  return charges
end

local charges        -- their functions, once needed
