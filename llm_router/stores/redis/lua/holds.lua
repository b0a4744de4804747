-- Reservations: one hash for all of them, so that a batch writes, reads and deletes its own in one call each.
--
-- KEYS[1]: the hash. Field: the id. Value: "<expires> <requests> <tokens> <name of the model's scope>", and then
-- " <metric> <mark>" of each quota it was taken from.
-- KEYS[2]: "<kept until> <sweep at> <cursor>": when the hash ends, when to look for expired fields again, and
-- from where. A field has no life span of its own on servers before Redis 7.4.

local add_hold, fetch_holds, remove_hold, write_holds = (function()
  local MARGIN = 60 * 1e6  -- how far ahead the end of the hash is set, lest it be set at every call

  local holds = {}         -- id -> the value; false if there is none
  local written = {}       -- the arguments of HSET
  local length = 0         -- how many of them there are
  local dropped = {}       -- ids to delete
  local latest_end = 0     -- when the last of those written expires

  -- `taken_from`: the name of the scope and the marks, as they are stored.
  local function add(id, expires, requests, tokens, taken_from)
    local value = digits(expires) .. " " .. digits(requests) .. " " .. digits(tokens) .. taken_from
    written[length + 1], written[length + 2] = id, value
    length = length + 2
    holds[id] = value
    if expires > latest_end then latest_end = expires end
  end

  -- Read the reservations of these ids.
  local function fetch(ids)
    local values = call("HMGET", KEYS[1], unpack(ids))
    for i = 1, #ids do
      holds[ids[i]] = values[i]
    end
  end

  -- Forget a reservation and return it: expires, requests, tokens, name of the scope, marks; nil if there is none.
  local function take_out(id)
    local value = holds[id]
    holds[id] = false
    if not value then return nil end
    dropped[#dropped + 1] = id
    local expires, requests, tokens, name, marks = match(value, "^(%d+) (%d+) (%d+) (%S+)([ %d]*)$")
    if not expires then
      corrupt = corrupt or KEYS[1]
      return nil
    end
    return tonumber(expires), tonumber(requests), tonumber(tokens), name, marks
  end

  -- Delete the expired ones among the next few; return where to go on.
  local function sweep(cursor)
    local answer = call("HSCAN", KEYS[1], cursor, "COUNT", 200)
    local fields, gone = answer[2], {}
    for i = 1, #fields, 2 do
      local expires = tonumber(match(fields[i + 1], "^%d+"))
      if expires and expires <= now then gone[#gone + 1] = fields[i] end
    end
    if gone[1] and #gone < 4000 then call("HDEL", KEYS[1], unpack(gone)) end
    return answer[1]
  end

  local function prolong()
    local kept_until, sweep_at, cursor = match(fetched[KEYS[2]] or "", "^(%d+) (%d+) (%d+)$")
    kept_until, sweep_at = tonumber(kept_until or 0), tonumber(sweep_at or 0)
    local due, longer = now >= sweep_at, latest_end > kept_until
    if longer then kept_until = latest_end + MARGIN end
    if due then cursor, sweep_at = sweep(cursor or "0"), now + 0.1 * 1e6 end
    -- At every call: a hash that was emptied meanwhile has lost its end.
    local lasts = time_to_live(kept_until)
    call("PEXPIRE", KEYS[1], lasts)
    if due or longer then call("SET", KEYS[2], format("%d %d %s", kept_until, sweep_at, cursor), "PX", lasts) end
  end

  local function write()
    if length > 0 then call("HSET", KEYS[1], unpack(written)) end
    local gone = {}
    for i = 1, #dropped do
      if not holds[dropped[i]] then gone[#gone + 1] = dropped[i] end
    end
    if gone[1] then call("HDEL", KEYS[1], unpack(gone)) end
    if length > 0 then prolong() end
  end

  return add, fetch, take_out, write
end)()
