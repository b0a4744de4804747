-- What is known of full deployments, so that refusing one again costs a few comparisons.
--
-- The first refusal by a deployment leaves a companion of its model's scope, a key beside its own, until the earliest
-- time at which something comes back; whatever changes the scope deletes it. It says, packed, for demands of one
-- request:
--   I6  the fingerprint of the profile that it holds for
--   d d from when, and until when
--   d   the end of the cooldown of the model; 0 if there is none
--   d d when one request has room in the quotas of requests, 0 if it has; how many tokens have room in those of tokens
--   d   when the least demand, one request with one token, has room in all quotas; 0 if it has
--   B   the metric that a request waits for, plus 8 times the metric that more tokens wait for, plus 64 if the latter
--       comes first in the profile
--   H d how many steps there are, and how much larger each is than the one before, on average
--   d d as step 0, how many tokens have room, and 0; then for each step up to how many, and when
--   s s if there is a cooldown, its end as text, and its description
-- A demand that is larger than the last step is decided by the ledgers, and leaves steps that reach as far. With
-- fakeredis, which has no struct library, everything is decided by the ledgers.

-- Number of a deployment -> the companion of its model's scope, or false; true if there is one that was not read yet.
local knowledge = {}
local profile_of = {} -- number of a deployment -> the fingerprint of its profile
local sole_profile   -- the fingerprint of the profile of all deployments, or 0; set by batch.lua

local KNOWN = "<I6ddddddBHd"
local SHORTEST = 6 + 6 * 8 + 1 + 2 + 8 + 2 * 8 -- bytes of a companion without steps

local function load_full()
  local ANY = 2 ^ 52   -- more than any amount
  local full = {}
  local noted = {}     -- key -> {scope, value, until}

  -- How much has room in a ledger; below 0 if more is used than there may be.
  local function room_in(s, terms)
    local used = s[terms.at + USED]
    return terms.limit - (terms.daily and max(used, s[terms.at + CARRY]) or used)
  end

  -- From when until when it holds: since the newest entry, until the oldest one comes back, a day ends, ….
  local function span_of(s, all)
    local from, till = s[4], s[3] > now and s[3] or now + 86400 * 1e6
    for _, terms in ipairs(all) do
      local starts, ends = kind_of(terms.kind).holds(s, terms.at)
      if terms.limit_expires < NEVER then starts = max(starts, terms.limit_starts) end
      from, till = max(from, starts), min(till, ends, terms.limit_expires)
    end
    return from, till
  end

  -- Of the quotas of requests: when one fits, the metric that it waits for, and the place of that in the profile.
  local function requests_of(s, all)
    local latest, metric, place = 0, 0, 0
    for i, terms in ipairs(all) do
      if not terms.tokens then
        local moment = kind_of(terms.kind).room_at(s, terms.at, 1, terms)
        moment = moment > now and min(moment, terms.limit_expires) or 0
        if moment > latest then latest, metric, place = moment, terms.metric, i end
      end
    end
    return latest, metric, place
  end

  -- Of the quotas of tokens: how many fit, which one decides about more, its place; its steps, if more are asked for.
  local function tokens_of(s, all, tokens)
    local chosen, place, spare = nil, 0, ANY
    for i, terms in ipairs(all) do
      if terms.tokens then
        if chosen and terms.daily then
          spare = min(spare, room_in(s, terms))
        else
          if chosen then spare = min(spare, room_in(s, chosen)) end
          chosen, place = terms, i
        end
      end
    end
    if not chosen then return spare, 0, 0, {} end
    local fit = max(0, min(spare, room_in(s, chosen)))
    if fit >= max(tokens, 1) then return fit, chosen.metric, place, {} end
    local most = min(spare, chosen.limit)
    return fit, chosen.metric, place, kind_of(chosen.kind).steps(s, chosen.at, chosen, tokens, fit, most)
  end

  local function is_simple(s, all)
    for _, terms in ipairs(all) do
      if terms.kind == STEADY then return false end -- it drains all the time
    end
    return s[SET_BACK] == "" and not s[CHANGED]
  end

  -- Note what is known of a deployment that refused so many tokens, for the next refusals.
  function full.note(number, deployment, tokens)
    local key, _, place = named(number)
    local s, all = deployment.scope, deployment.terms
    if noted[key] or not s[STORED] or not is_simple(s, all) then return end
    local requests_at, requests_metric, requests_place = requests_of(s, all)
    local fit, tokens_metric, tokens_place, steps = tokens_of(s, all, tokens)
    local first_step = fit < 1 and (steps[2] or NEVER) or 0
    local from, till = span_of(s, all)
    if fit < 1 and not steps[1] then return end -- it is not known when one token fits
    local cools = s[3] > now
    local value = struct.pack(
      KNOWN,
      (unpack_from("<I6", ARGV[7], place)),
      from,
      till,
      cools and s[3] or 0,
      requests_at,
      fit,
      max(requests_at, first_step),
      requests_metric + 8 * tokens_metric + (tokens_place < requests_place and 64 or 0),
      #steps / 2,
      steps[1] and (steps[#steps - 1] - fit) / (#steps / 2) or 1
    )
    value = value .. struct.pack("<dd" .. string.rep("d", #steps), fit, 0, unpack(steps))
    if cools then value = value .. struct.pack("<ss", s[6], s[7]) end
    spent = spent + 12 + #steps / 4
    noted[key], knowledge[number], profile_of[number] = { s, value, till }, value, unpack_from("<I6", ARGV[7], place)
  end

  function full.write()
    for key, note in pairs(noted) do
      local s = note[1]
      if not s[CHANGED] then
        call("SET", key, note[2], "PX", time_to_live(note[3]))
        if not s[FULL] then
          local value = string.char(byte(s[STORED]) + 128) .. sub(s[STORED], 2)
          call("SET", s[KEY], value, "PX", time_to_live(max(now, kept_until(s))))
        end
      end
    end
  end

  return full
end

local full -- its functions, once needed
