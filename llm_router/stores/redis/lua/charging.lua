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

  -- Change each quota of a deployment by what was taken from it at a time, at the latest now.
  local function count(deployment, at, requests, tokens)
    local s = deployment.scope
    at = min(at, now)
    for _, terms in ipairs(deployment.terms) do
      local amount, kind = terms.tokens and tokens or requests, kind_of(terms.kind)
      if amount <= 0 then
        amount = 0
      elseif terms.kind ~= STEADY then
        kind.correct(s, terms.at, at, amount)
      elseif at > now - terms.span then
        kind.take(s, terms.at, amount) -- how much of it has drained is not known
      end
      if s[9] ~= "" and amount > 0 and not terms.daily then
        changing = changing or load_changing()
        changing.count(s, terms.metric, amount)
      end
    end
    spent = spent + 2
  end

  -- `charge`: {source, sequence, since, {at, requests, tokens, …}, {at, requests, tokens, …}}; see batch.lua. Return
  -- when the record began, or nil and a key that holds something else.
  function charges.make(deployment, charge)
    local s, sequence, since, missing, counted = deployment.scope, charge[2], charge[3], charge[4], charge[5]
    local key = charge_prefix .. charge[1] .. ":" .. s[NAME]
    local last = last_at(key)
    if not last then return nil, key end
    if s[FOREIGN] and (missing[1] or counted[1]) then return nil, s[KEY] end
    spent = spent + 5
    if sequence <= last then return s[SINCE] end
    made[key] = sequence
    for i = 1, #missing, 3 do
      count(deployment, missing[i], missing[i + 1], missing[i + 2])
    end
    if since ~= s[SINCE] then
      for i = 1, #counted, 3 do
        if since ~= s[FORMER] or counted[i] > s[GAP] then
          count(deployment, counted[i], counted[i + 1], counted[i + 2])
        end
      end
    end
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
