-- One call of the record store, as one atomic step.
--
-- KEYS, of one space: the hash of the data by name; the sorted set of the names by version, which is also the order of
-- putting; the sorted set of the names by expiry; the hash with the last version given and the bytes of all names and
-- data. Times are in microseconds since the Unix epoch, versions at least as high as the time when they were given.
-- ARGV[1] is the operation, ARGV[2] the caller's clock, or "" for the server's. Then, and what is returned:
--   get     name                                     {data, version, expiry}, or nothing
--   put     name, data, lasts, expected version or "", most records, most bytes
--                                                    {1, version}, or {0, the version that is there, or 0}
--   delete  name
--   find    prefix, most names, "data" or ""         names, the last put first; with "data" also each one's data
--   add     name, lasts, most records, most bytes, most bytes of a record; then fields and amounts
--                                                    the counts as text, or nothing: they are too many

local data, order, ends, totals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local call = redis.call
local HIGHEST = 9007199254740991 -- as in entries.py
local SWEPT = 100                -- most expired records that one call removes
local FOUND_AT_ONCE = 1000

local function digits(number)
  return string.format("%.0f", number)
end

local now = tonumber(ARGV[2])
if not now then
  local time = call("TIME")
  now = time[1] * 1000000 + time[2]
end

local function forget(name)
  local size = call("HSTRLEN", data, name)
  if call("HDEL", data, name) == 1 then call("HINCRBY", totals, "size", -(size + #name)) end
  call("ZREM", order, name)
  call("ZREM", ends, name)
end

local function version_of(name)
  local expires = tonumber(call("ZSCORE", ends, name) or 0)
  return expires > now and tonumber(call("ZSCORE", order, name) or 0) or 0, expires
end

-- Forget everything if some of it is gone: a server that is short of memory evicts whole keys.
local function mend()
  local count = call("HLEN", data)
  local is_whole = call("ZCARD", order) == count and call("ZCARD", ends) == count
  local last = call("HGET", totals, "version")
  if not is_whole or (count > 0 and not last) then
    last = math.max(tonumber(last or 0), tonumber(call("ZREVRANGE", order, 0, 0, "WITHSCORES")[2] or 0))
    call("DEL", data, order, ends, totals)
    call("HSET", totals, "version", digits(last))
  end
end

local function keep(name, value, lasts, most, size)
  mend()
  forget(name)
  local version = math.max(tonumber(call("HGET", totals, "version") or 0) + 1, now)
  call("HSET", data, name, value)
  call("ZADD", order, digits(version), name)
  call("ZADD", ends, digits(now + lasts), name)
  call("HSET", totals, "version", digits(version))
  call("HINCRBY", totals, "size", #value + #name)
  for _, gone in ipairs(call("ZRANGEBYSCORE", ends, "-inf", digits(now), "LIMIT", 0, SWEPT)) do
    forget(gone)
  end
  while call("ZCARD", order) > most or tonumber(call("HGET", totals, "size")) > size do
    forget(call("ZRANGE", order, 0, 0)[1])
  end
  local last = call("ZRANGE", ends, -1, -1, "WITHSCORES")[2]
  for _, key in ipairs(KEYS) do
    call("PEXPIRE", key, digits(math.ceil((tonumber(last) - now) / 1000) + 1000))
  end
  return version
end

local operation = ARGV[1]
if operation == "get" then
  local version, expires = version_of(ARGV[3])
  local value = call("HGET", data, ARGV[3])
  if version == 0 or not value then return false end
  return {value, digits(version), digits(expires)}
end

if operation == "put" then
  local name, expected = ARGV[3], tonumber(ARGV[6])
  if expected then
    local present = version_of(name)
    if present ~= expected then return {0, digits(present)} end
  end
  return {1, digits(keep(name, ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[7]), tonumber(ARGV[8])))}
end

if operation == "delete" then
  forget(ARGV[3])
  return true
end

if operation == "find" then
  local prefix, most, with_data = ARGV[3], tonumber(ARGV[4]), ARGV[5] == "data"
  local found, count, first = {}, 0, 0
  while count < most do
    local names = call("ZREVRANGE", order, first, first + FOUND_AT_ONCE - 1)
    if #names == 0 then break end
    for _, name in ipairs(names) do
      if count < most and string.sub(name, 1, #prefix) == prefix and version_of(name) > 0 then
        count = count + 1
        found[#found + 1] = name
        if with_data then found[#found + 1] = call("HGET", data, name) or "" end
      end
    end
    first = first + FOUND_AT_ONCE
  end
  return found
end

if operation == "add" then
  local name, fields, counts = ARGV[3], {}, {}
  local text = version_of(name) > 0 and call("HGET", data, name) or ""
  for field, number in string.gmatch(text, "([^=;]+)=(%-?%d+);") do
    fields[#fields + 1] = field
    counts[field] = tonumber(number)
  end
  for place = 8, #ARGV, 2 do
    local field = ARGV[place]
    if not counts[field] then fields[#fields + 1] = field end
    counts[field] = math.max(-HIGHEST, math.min((counts[field] or 0) + tonumber(ARGV[place + 1]), HIGHEST))
  end
  local parts = {}
  for place, field in ipairs(fields) do
    parts[place] = field .. "=" .. digits(counts[field]) .. ";"
  end
  text = table.concat(parts)
  if #text + #name > tonumber(ARGV[7]) then return false end
  keep(name, text, tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))
  return text
end

return redis.error_reply("unknown operation")
