-- Reservations: one hash for all of them, so that a batch writes, reads and deletes its own in one command each.
--
-- KEYS[1]: the hash. Field: the id. Value: "<expires> <requests> <tokens> <name of the model's scope>", then
-- " <metric> <mark>" for each quota that it was taken from.
-- KEYS[2]: "<kept until> <sweep at> <cursor>": when the hash expires, when to look for expired fields next, and
-- where to continue. Before Redis 7.4 a field cannot expire by itself.

local add_reservation, fetch_reservations, remove_reservation, write_reservations = (function()
  local MARGIN = 60 * 1e6  -- how far ahead the expiry of the hash is set, so that not every call sets it

  local reservations = {}  -- id -> the value; false if there is none
  local written = {}       -- the arguments of HSET
  local length = 0         -- how many of them there are
  local dropped = {}       -- ids to delete
  local latest_end = 0     -- when the last of those written expires

  -- `taken_from`: the name of the scope and the marks, as they are stored.
  local function add(id, expires, requests, tokens, taken_from)
    local value = digits(expires) .. " " .. digits(requests) .. " " .. digits(tokens) .. taken_from
    written[length + 1], written[length + 2] = id, value
    length = length + 2
    reservations[id] = value
    if expires > latest_end then latest_end = expires end
  end

  -- Read the reservations with these ids.
  local function fetch(ids)
    local values = call("HMGET", KEYS[1], unpack(ids))
    for i = 1, #ids do
      reservations[ids[i]] = values[i]
    end
  end

  -- Remove a reservation and return it: expires, requests, tokens, name of the scope, marks; nil if there is none.
  local function remove(id)
    local value = reservations[id]
    reservations[id] = false
    if not value then return nil end
    dropped[#dropped + 1] = id
    local expires, requests, tokens, name, marks = match(value, "^(%d+) (%d+) (%d+) (%S+)([ %d]*)$")
    if not expires then
      corrupt = corrupt or KEYS[1]
      return nil
    end
    return tonumber(expires), tonumber(requests), tonumber(tokens), name, marks
  end

  -- Delete the expired ones among the next few; return where to continue.
  local function sweep(cursor)
    local answer = call("HSCAN", KEYS[1], cursor, "COUNT", 200)
    local fields, expired = answer[2], {}
    for i = 1, #fields, 2 do
      local expires = tonumber(match(fields[i + 1], "^%d+"))
      if expires and expires <= now then expired[#expired + 1] = fields[i] end
    end
    if expired[1] and #expired < 4000 then call("HDEL", KEYS[1], unpack(expired)) end
    return answer[1]
  end

  local function prolong()
    local kept_until, sweep_at, cursor = match(fetched[KEYS[2]] or "", "^(%d+) (%d+) (%d+)$")
    kept_until, sweep_at = tonumber(kept_until or 0), tonumber(sweep_at or 0)
    local due, longer = now >= sweep_at, latest_end > kept_until
    if longer then kept_until = latest_end + MARGIN end
    if due then cursor, sweep_at = sweep(cursor or "0"), now + 0.1 * 1e6 end
    -- At every call: a hash that became empty meanwhile has lost its expiry.
    local lasts = time_to_live(kept_until)
    call("PEXPIRE", KEYS[1], lasts)
    if due or longer then call("SET", KEYS[2], format("%d %d %s", kept_until, sweep_at, cursor), "PX", lasts) end
  end

  local function write()
    if length > 0 then call("HSET", KEYS[1], unpack(written)) end
    local gone = {}
    for i = 1, #dropped do
      if not reservations[dropped[i]] then gone[#gone + 1] = dropped[i] end
    end
    if gone[1] then call("HDEL", KEYS[1], unpack(gone)) end
    if length > 0 then prolong() end
  end

  return add, fetch, remove, write
end)()
