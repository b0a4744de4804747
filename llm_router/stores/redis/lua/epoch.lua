-- What the shard has lost: when its epoch began, and what was charged because of it.
--
-- KEYS[5]: "<begin> <reset> <server>": when the epoch began, when the shard last lost something (0: never), and the
-- first letters of the run id of the server that wrote it, or "-". It begins anew, with loss, when the key is missing
-- although the caller names one, and when another server answers: one that was restarted, or a replica that took over.
-- A record of an earlier epoch goes on with what is left of it. When the key of a record is missing although the caller
-- knows it, it begins anew, with loss. For a while after a loss nothing that it concerns is granted.

local QUIET = 1e6    -- as in stores/base.py

local epoch, reset_at = 0, 0
local charge_prefix  -- of the keys that remember charges; set by batch.lua

local read_epoch, write_epoch = (function()
  local RUN_ID = 12
  local KEPT = 366 * 86400 * 1000
  local server, changed = "-", false

  local function run_id()
    local info = redis.pcall("INFO", "server")
    return type(info) == "string" and match(info, "run_id:(%w+)") or ""
  end

  -- Read the value of KEYS[5]; return whether it is one.
  local function read(value, known, is_checked)
    if value then
      local begins, reset, letters = match(value, "^(%d+) (%d+) (%S+)$")
      if not begins then return false end
      epoch, reset_at, server = tonumber(begins), tonumber(reset), letters
      if known ~= 0 and known ~= epoch and reset_at == 0 then reset_at, changed = now, true end
    else
      epoch, reset_at, changed = now, known ~= 0 and now or 0, true
    end
    if is_checked then
      local letters = sub(run_id(), 1, RUN_ID)
      if letters ~= "" and letters ~= server then
        if server ~= "-" then epoch, reset_at = max(now, epoch + 1), now end
        server, changed = letters, true
      end
    end
    return true
  end

  local function write()
    if not changed then return end
    call("SET", KEYS[5], digits(epoch) .. " " .. digits(reset_at) .. " " .. server, "PX", digits(KEPT))
  end

  return read, write
end)()

-- Until when nothing in the shard is granted, because it lost something just before; 0 if all is well.
local function quiet_until()
  return reset_at <= now and now < reset_at + QUIET and reset_at + QUIET or 0
end

-- Let the record of an earlier epoch go on in this one.
local function renew(s)
  s[FORMER], s[GAP], s[SINCE] = s[SINCE], s[WRITTEN], max(now, s[SINCE] + 1)
  touch(s)
end

-- Note that a record was lost that the caller knows.
local function miss(s)
  if not s[STORED] and s[FORMER] == 0 then
    s[FORMER] = 1
    s[2] = max(s[2], now + 60 * QUIET)
    touch(s)
  end
end

-- Until when a record grants nothing, because its former was lost; 0 if all is well.
local function record_quiet_until(s)
  return s[FORMER] == 1 and now < s[SINCE] + QUIET and s[SINCE] + QUIET or 0
end

local function load_charges()
  local LASTS = 25 * 3600 * 1000 -- as in stores/base.py
  local charges = {}
  local made = {}      -- key -> the sequence of the last charge

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
    end
    spent = spent + 2
  end

  -- `charge`: {source, sequence, since, {at, requests, tokens, …}, {at, requests, tokens, …}}; see batch.lua.
  function charges.make(deployment, charge)
    local s, since, missing, counted = deployment.scope, charge[3], charge[4], charge[5]
    local key = charge_prefix .. charge[1] .. ":" .. s[NAME]
    local last = made[key] or tonumber(call("GET", key) or -1)
    if s[FOREIGN] or charge[2] <= last then return s[SINCE] end
    made[key] = charge[2]
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
    touch(s)
    return s[SINCE]
  end

  function charges.write()
    for key, sequence in pairs(made) do
      call("SET", key, digits(sequence), "PX", digits(LASTS))
    end
  end

  return charges
end

local charges        -- their functions, once needed
