-- Cooldowns, those of the scopes that belong to no model, and what a deployment makes of those of its scopes.
--
-- KEYS[3]: "<lifts> <until> <whether more than are listed> <name> <end> <name> <end> …": how often a cooldown was
-- lifted, until when one of a key, a project or a provider matters, and which of these have one until when. So their
-- keys are read only if there is something to find.
-- KEYS[4]: the former of this key: until when, and nothing else.

local others_until = 0 -- until when a cooldown of a key, project or provider matters, or later
local lifts = 0
local listed, more_than_listed = "", false

-- Read the values of KEYS[3] and KEYS[4]; return a key that holds something else, if one does.
local function read_others(present, former)
  if present then
    local count, ends, more
    count, ends, more, listed = match(present, "^(%d+) (%d+) ([01])(.*)$")
    if not count then return KEYS[3] end
    lifts, others_until, more_than_listed = tonumber(count), tonumber(ends), more == "1"
  end
  local ends = tonumber(former or 0)
  if not ends then return KEYS[4] end
  if ends > now then others_until, more_than_listed = max(others_until, ends), true end
end

local function exact(text)
  if text == "inf" then return math.huge end
  return tonumber(text)
end

local function load_cooldowns()
  local MOST = 16      -- scopes that are listed
  local ends_of = {}   -- name -> until when it matters
  local changed = false
  local unreadable = {} -- keys of format 2 to delete
  local latest_of = {} -- place of the other scopes of a deployment -> that whose cooldown ends last, or false

  for name, ends in string.gmatch(listed, " (%S+) (%d+)") do
    ends_of[name] = tonumber(ends)
  end

  local cooldowns = {}

  local function set(s, ends, half_open, text, description)
    s[3], s[4], s[5], s[6], s[7] = ends, now, half_open, text, description
    touch(s)
    if sub(s[NAME], 1, 6) == "model:" then return end -- which is always read
    ends_of[s[NAME]], changed, latest_of = forgotten_at(s), true, {}
    others_until = max(others_until, forgotten_at(s))
  end

  local function set_end(s, ends)
    set(s, ends, s[5], format("%d.%06d", floor(ends / 1e6), ends % 1e6), s[7])
  end

  -- Look at one of the scopes of a deployment: is its cooldown the last to end, or is it to be probed?
  local function see(deployment, s)
    if s[FOREIGN] then deployment.is_foreign, deployment.closed, deployment.unreadable = true, true, s[NAME] end
    if s[3] > now then
      if not deployment.cooling or exact(s[6]) > exact(deployment.cooling[6]) then deployment.cooling = s end
    elseif s[5] == 1 and forgotten_at(s) > now then
      deployment.due = deployment.due or {}
      insert(deployment.due, s)
    end
  end

  -- Call a function with the name of each other scope of a deployment that must be read.
  function cooldowns.each(others, see_name)
    if others_until <= now then return end
    for _, name in ipairs({ unpack_from("<sss", ARGV[10], others) }) do
      if type(name) == "string" and (more_than_listed or (ends_of[name] or 0) > now) then see_name(name) end
    end
  end

  -- Find out what the cooldowns of the scopes of a deployment mean for it.
  function cooldowns.see(deployment, others)
    see(deployment, deployment.scope)
    cooldowns.each(others, function(name) see(deployment, get_scope(name)) end)
  end

  -- The other scope of a deployment whose cooldown ends last, or nil.
  function cooldowns.latest(others)
    if latest_of[others] == nil then
      local deployment = {}
      cooldowns.each(others, function(name) see(deployment, get_scope(name)) end)
      latest_of[others] = deployment.cooling or false
    end
    return latest_of[others] or nil
  end

  -- Let one request probe a half-open cooldown that has ended: the others wait for a while.
  function cooldowns.probe(s) set_end(s, now + probe_time) end

  -- Begin anew in the place of what cannot be read. Of a model that is a lost record: those who know it charge again.
  local function replace(s)
    if s[FOREIGN] ~= s[KEY] then insert(unreadable, s[FOREIGN]) end
    s[FOREIGN], s[STORED] = false, true
    if sub(s[NAME], 1, 6) == "model:" then s[FORMER], s[2] = 1, now + 60 * QUIET end
  end

  -- `cooldown`: {scope, until, until exact, description, half-open, {limits}}; see batch.lua. Return the key of the
  -- scope if it holds something else, which only a lift replaces.
  function cooldowns.impose(cooldown)
    local s, ends, text, limits = get_scope(cooldown[1]), cooldown[2], cooldown[3], cooldown[6]
    if s[FOREIGN] and text ~= "lift" then return s[FOREIGN] end
    if text == "lift" or text == "retry" then
      -- Never a number that was used before the key expired.
      if s[3] ~= 0 or s[FOREIGN] then lifts, changed = lifts == 0 and now or lifts + 1, true end
      if s[FOREIGN] then replace(s) end
      if text == "lift" then
        set(s, 0, 0, "", "")
      elseif s[5] == 1 and s[3] > now then
        set_end(s, now)
      end
    elseif text == "probe" then -- a request of another shard probes it
      if s[5] == 1 and s[3] <= now and forgotten_at(s) > now then set_end(s, now + probe_time) end
    elseif ends > now and (s[3] <= now or exact(text) > exact(s[6])) then
      set(s, ends, cooldown[5], text, cooldown[4])
    end
    if limits[1] then
      rare = rare or load_rare()
      local learnt = rare.learnt_limits(s)
      for i = 1, #limits do
        rare.learn(learnt, limits[i])
      end
      rare.set_learnt_limits(s, learnt)
      touch(s)
    end
  end

  -- Return the key of what is to be written if it is of another type: MGET ignores that, but GET refuses it.
  function cooldowns.check()
    return changed and type(redis.pcall("GET", KEYS[3])) == "table" and KEYS[3]
  end

  function cooldowns.write()
    if unreadable[1] then call("DEL", unpack(unreadable)) end
    if not changed then return end
    local parts, count = {}, 0
    for name, ends in pairs(ends_of) do
      if ends > now then
        count = count + 1
        if count <= MOST then insert(parts, " " .. name .. " " .. digits(ends)) end
      end
    end
    local more = others_until > now and (more_than_listed or count > MOST)
    local head = digits(lifts) .. " " .. digits(others_until) .. " " .. (more and "1" or "0")
    call("SET", KEYS[3], head .. concat(parts), "PX", time_to_live(NEVER))
  end

  return cooldowns
end

local cooldowns -- their functions, once needed
