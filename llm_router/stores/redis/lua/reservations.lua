-- Reservations: one hash for all of them, so that a batch writes, reads and deletes its own in one command each.
--
-- KEYS[1]: the hash. Field: the id. Value: "<expires> <requests> <tokens> <name of the model's scope>@<lasts>.<turn>",
-- then " <metric> <mark>" for each quota that it was taken from. The mark begins with 0 if the quota was steady, with
-- 00 if it was daily. In format 2 the name was followed by the marks, and these had no zeros.
-- KEYS[7]: the same of earlier releases, in either format. What is not in KEYS[1] is looked for there; nothing is added,
-- and what expires there does so with the hash.
-- KEYS[2]: the byte 1, five doubles and a text: when the hash expires; when to look for expired fields next (before
-- Redis 7.4 a field cannot expire by itself); the latest time seen; how often the clock was found to be set back; when
-- it was so last; and the cursor of HSCAN to go on with. With fakeredis, which has no struct library, it is text, as in
-- format 2, which had "<when the hash expires> <when to look> <cursor>". No count is in it: where it cannot be read, it
-- begins anew, as if the clock had just been set back.

local read_sweep, add_reservation, fetch_reservations, remove_reservation, write_reservations = (function()
  local MARGIN = 60 * 1e6  -- how far ahead the expiry of the hash is set, so that not every call sets it
  local LONGEST = 7 * 86400 * 1e6 -- for how long a reservation lives at most, as in stores/ledger/

  local reservations = {}  -- id -> the value; false if there is none
  local written = {}       -- the arguments of HSET
  local length = 0         -- how many of them there are
  local dropped = {}       -- ids to delete
  local former = {}        -- id -> whether it is in KEYS[7]
  local latest_end = 0     -- when the last of those written expires

  local kept_until, sweep_at, cursor, seen, turn, set_back_at = 0, 0, "0", 0, 0, 0
  local is_set_back, is_stored = false, false

  -- The state of a value of KEYS[2]; nil, or an error, if it is none.
  local function decode(value)
    if byte(value) == 1 then
      local kept, due, last, times, moved, at = unpack_from("<xddddd", value)
      return kept, due, last, times, moved, match(value, "^%d+$", at)
    end
    local kept, due, place, rest = match(value, "^(%d+) (%d+) (%d+)(.*)$")
    local last, times, moved = match(rest or "", "^ (%d+) (%d+) (%d+)$")
    return tonumber(kept), tonumber(due), tonumber(last or 0), tonumber(times or 0), tonumber(moved or 0), place
  end

  -- Read the value of KEYS[2], and find out whether the clock was set back since it was written.
  local function read(value)
    is_stored = value and true
    if not value then return end
    local is_read, kept, due, last, times, moved, place = pcall(decode, value)
    if is_read and place then
      kept_until, sweep_at, seen, turn, set_back_at, cursor = kept, due, last, times, moved, place
      if now < seen then
        is_set_back, turn, set_back_at, sweep_at = true, turn + 1, now, 0
      end
    else -- no reservation may end earlier because of it
      is_set_back, turn, set_back_at, kept_until = true, now, now, now + LONGEST
    end
  end

  local function is_of_another_type(answer)
    return type(answer) == "table" and answer.err and string.find(tostring(answer.err), "WRONGTYPE", 1, true)
  end

  -- `name` and `marks`: as they are stored.
  local function add(id, lasts, requests, tokens, name, marks)
    local expires = now + lasts
    local value = digits(expires) .. " " .. digits(requests) .. " " .. digits(tokens)
    value = value .. name .. digits(lasts) .. "." .. digits(turn) .. marks
    written[length + 1], written[length + 2] = id, value
    length = length + 2
    reservations[id] = value
    if expires > latest_end then latest_end = expires end
  end

  -- Read the reservations with these ids.
  local function fetch(ids)
    local values, others = redis.pcall("HMGET", KEYS[1], unpack(ids)), {}
    if is_of_another_type(values) then
      corrupt = KEYS[1]
      return
    end
    if values.err then call("HMGET", KEYS[1], unpack(ids)) end -- fails in the server's words
    for i = 1, #ids do
      reservations[ids[i]] = values[i]
      if not values[i] then others[#others + 1] = ids[i] end
    end
    if not others[1] then return end
    values = redis.pcall("HMGET", KEYS[7], unpack(others))
    for i = 1, values.err and 0 or #others do
      reservations[others[i]], former[others[i]] = values[i], values[i] and true
    end
  end

  -- When a reservation expires. The clock may have been set back since it was made: it does not last for longer then.
  local function end_of(expires, lasts, made_in)
    expires = tonumber(expires)
    if lasts == "" or tonumber(made_in) == turn then return expires end
    return min(expires, set_back_at + tonumber(lasts))
  end

  -- Remove a reservation and return it: requests, tokens, name of the scope, marks, whether they are of format 2; nil
  -- if there is none, or if it has expired; nil and the key if that holds something else, which is left as it is.
  local function remove(id)
    local value = reservations[id]
    reservations[id] = false
    if not value then return nil end
    local expires, requests, tokens, name, lasts, made_in, marks =
      match(value, "^(%d+) (%d+) (%d+) ([^ @]+)@?(%d*)%.?(%d*)([ %d]*)$")
    if not expires then return nil, former[id] and KEYS[7] or KEYS[1] end
    dropped[#dropped + 1] = id
    if now >= (former[id] and tonumber(expires) or end_of(expires, lasts, made_in)) then return nil end
    return tonumber(requests), tonumber(tokens), name, marks, lasts == ""
  end

  -- Delete the expired ones among the next few, and go on for as long as many are; return whether there may be more.
  local function sweep()
    local ROUND, MOST = 250, 4000
    local visited, is_full = 0, nil
    repeat
      local answer = call("HSCAN", KEYS[1], cursor, "COUNT", ROUND)
      local fields, expired = answer[2], {}
      for i = 1, #fields, 2 do
        local expires = tonumber(match(fields[i + 1], "^%d+"))
        if expires and turn > 0 then
          local lasts, made_in = match(fields[i + 1], "@(%d+)%.(%d+)")
          expires = end_of(expires, lasts or "", made_in)
        end
        if expires and expires <= now then expired[#expired + 1] = fields[i] end
      end
      if expired[1] then call("HDEL", KEYS[1], unpack(expired, 1, min(#expired, MOST))) end
      cursor, visited = answer[1], visited + #fields / 2
      is_full = #expired > 0 and #expired * 8 >= #fields -- a quarter of them
    until cursor == "0" or visited >= MOST or not is_full
    return cursor ~= "0" and is_full
  end

  local function prolong()
    local due, longer = is_set_back or now >= sweep_at, latest_end > kept_until
    if longer then kept_until = latest_end + MARGIN end
    if due then sweep_at = sweep() and now or now + 0.1 * 1e6 end
    -- At every call: a hash that became empty meanwhile has lost its expiry.
    local lasts = time_to_live(kept_until)
    call("PEXPIRE", KEYS[1], lasts)
    if due or longer then
      local state
      if struct then
        state = struct.pack("<Bddddd", 1, kept_until, sweep_at, now, turn, set_back_at) .. cursor
      else
        state = format("%d %d %s %d %d %d", kept_until, sweep_at, cursor, now, turn, set_back_at)
      end
      call("SET", KEYS[2], state, "PX", lasts)
    end
  end

  -- Return a key that holds something else, if one does: nothing is written then.
  local function write()
    if not is_stored and length > 0 and is_of_another_type(redis.pcall("GET", KEYS[2])) then return KEYS[2] end
    if length > 0 then
      local answer = redis.pcall("HSET", KEYS[1], unpack(written))
      if is_of_another_type(answer) then return KEYS[1] end
      if type(answer) == "table" then call("HSET", KEYS[1], unpack(written)) end -- fails in the server's words
    elseif is_set_back and is_of_another_type(redis.pcall("HMGET", KEYS[1], "")) then
      return KEYS[1]
    end
    local gone, gone_there = {}, {}
    for i = 1, #dropped do
      local id = dropped[i]
      if former[id] then
        insert(gone_there, id)
      elseif not reservations[id] then
        gone[#gone + 1] = id
      end
    end
    if gone[1] then call("HDEL", KEYS[1], unpack(gone)) end
    if gone_there[1] then call("HDEL", KEYS[7], unpack(gone_there)) end
    if length > 0 or is_set_back then prolong() end
  end

  return read, add, fetch, remove, write
end)()
