-- The epoch of a shard: when it began to count, and when it last lost something.
--
-- KEYS[5]: "<begin> <reset> <server>": when the epoch began, when the shard last lost something (0: never), and the
-- first letters of the run id of the server that wrote it, or "-". It begins anew, with loss, when the caller names one
-- and the key is missing or older, and when another server answers: one that was restarted, or a replica that took
-- over. No record begins before its epoch. One of an earlier epoch goes on with what is left of it (scopes.lua). When
-- the key of a record is missing although the caller knows it, it begins anew, with loss. For a while after a loss
-- nothing that it concerns is granted.

local QUIET = 1e6    -- as in stores/base.py

local reset_at = 0

local read_epoch, write_epoch = (function()
  local RUN_ID = 12
  local KEPT = 366 * 86400 * 1000
  local server, changed, used = "-", false, false

  local function run_id()
    local info = redis.pcall("INFO", "server")
    return type(info) == "string" and sub(match(info, "run_id:(%w+)") or "", 1, RUN_ID) or ""
  end

  local function begin(known)
    epoch, changed = max(now, known + 1, epoch + 1), true
    if known ~= 0 then reset_at = now end
  end

  -- Read the value of KEYS[5]; return whether it is one.
  local function read(value, known, is_checked)
    if value then
      local begins, reset, letters = match(value, "^(%d+) (%d+) (%S+)$")
      if not begins then return false end
      epoch, reset_at, server = tonumber(begins), tonumber(reset), letters
      if known > epoch then
        begin(known)
      elseif known ~= 0 and known < epoch and reset_at == 0 then
        reset_at, changed = now, true
      end
    else
      if type(redis.pcall("GET", KEYS[5])) == "table" then return false end -- MGET ignores a key of another type
      begin(known)
    end
    used = is_checked
    if is_checked or not value then
      local letters = run_id()
      if letters ~= "" and letters ~= server then
        if server ~= "-" then begin(epoch) end
        server, changed = letters, true
      end
    end
    return true
  end

  local function write()
    if changed then
      call("SET", KEYS[5], digits(epoch) .. " " .. digits(reset_at) .. " " .. server, "PX", digits(KEPT))
    elseif used then
      call("PEXPIRE", KEYS[5], digits(KEPT))
    end
  end

  return read, write
end)()

-- Until when nothing in the shard is granted, because it lost something just before; 0 if all is well.
local function quiet_until()
  return reset_at <= now and now < reset_at + QUIET and reset_at + QUIET or 0
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
  return s[FORMER] == 1 and s[SINCE] <= now and now < s[SINCE] + QUIET and s[SINCE] + QUIET or 0
end
