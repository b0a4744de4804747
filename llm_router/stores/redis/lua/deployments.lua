-- Deployments: which scopes and quotas they have, and the ledgers of these under the limits in force.
--
-- batch.lua describes the arguments.

local MODELS = 12    -- arguments before the keys of companions

local opened = {}    -- number of a deployment -> its scope and terms, under the limits in force

-- Of a deployment: the key of the companion of its model's scope, the place of its other scopes, that of its profile,
-- and when its record began, as far as the caller knows.
local function named(number)
  local others, profile, since = unpack_from("<I4I4I8", ARGV[6], number * 16 - 15)
  return ARGV[MODELS + number], others, profile, since
end

local open_deployment = (function()
  local EXACT_LIMIT, SLICES = 240, 240 -- as in stores/ledger/

  local profiles = {}  -- place -> its quotas

  -- A quota under a limit, in the form that its ledger needs. `limit_starts` and `limit_expires` are from when and until
  -- when a learnt limit is in force.
  local function terms_of(quota, limit, limit_expires, limit_starts)
    local metric, kind = quota[1], quota[2]
    return {
      metric = metric,
      tokens = metric % 2 == 0,
      daily = kind == DAILY,
      kind = kind,
      at = FIRST_LEDGER + (metric - 1) * LEDGER,
      limit = limit,
      resolution = limit <= EXACT_LIMIT and 0 or floor(quota[4] / SLICES),
      span = quota[5],
      guard = quota[6],
      capacity = min(quota[7], limit),
      zone = quota[8],
      limit_expires = limit_expires,
      limit_starts = limit_starts,
    }
  end

  -- The format in which a reservation stores a mark for each quota; see reservations.lua.
  local function form_of(terms)
    local form = ""
    for i = 1, #terms do
      form = form .. " " .. terms[i].metric .. " " .. sub("00", 1, terms[i].kind - 1) .. "%d"
    end
    return form
  end

  -- For how long a record is kept after a taking: as long as a process may know it (stores/failover/takings.py).
  local function keeping_of(terms)
    local longest = 60 * 1e6
    for i = 1, #terms do
      if not terms[i].daily then longest = max(longest, terms[i].span) end
    end
    return longest
  end

  -- The quotas of a profile: as received, and as terms under their own limits.
  local function profile_at(place)
    local profile = profiles[place]
    if not profile then
      local flags, at = unpack_from("B", ARGV[7], place + 6)
      profile = { quotas = {}, terms = {}, flags = flags }
      for i = 1, flags % 8 do
        local quota = { unpack_from("<BBI8I8I8I8I8s", ARGV[7], at) }
        at = quota[9]
        profile.quotas[i], profile.terms[i] = quota, terms_of(quota, quota[3], NEVER)
      end
      profile.terms.taken_from, profile.terms.keeping = form_of(profile.terms), keeping_of(profile.terms)
      profiles[place] = profile
    end
    return profile
  end

  -- The terms of a scope under its learnt limits, which lower configured limits, replace adaptive ones and add missing
  -- ones.
  local function learnt_terms(profile, learnt)
    local terms, is_configured = {}, {}
    for i, quota in ipairs(profile.quotas) do
      local metric = quota[1]
      local entry = learnt[metric]
      local own = entry and terms_of(quota, rare.in_force(entry))
      terms[i] = own and (own.limit < quota[3] or rare.is_adaptive(profile.flags, metric)) and own or profile.terms[i]
      is_configured[metric] = true
    end
    for metric, quota in ipairs(profile_at(1).quotas) do
      local entry = learnt[metric]
      if entry and not is_configured[metric] then insert(terms, terms_of(quota, rare.in_force(entry))) end
    end
    terms.taken_from, terms.keeping = form_of(terms), keeping_of(terms)
    return terms
  end

  -- Find or create the ledger for the terms, and bring it up to now.
  local function open_ledger(s, terms)
    local b, kind = terms.at, kind_of(terms.kind)
    local present = s[b]
    if present == terms.kind then
      -- A settle does not know the limits: it uses those that were in force when the ledger was last opened.
      local changed = kind.configure(s, b, terms)
      if kind.open(s, b) or changed then touch(s) end
    elseif present == 0 then
      clear_ledger(s, b)
      s[b] = terms.kind
      kind.configure(s, b, terms)
      kind.open(s, b)
    else
      changing = changing or load_changing()
      changing.replace(s, terms)
      opened = {} -- deployments for which the quota refills in another way must see it change back
    end
  end

  -- A deployment is opened once in a batch, and again after a cooldown. One that is only looked at changes no ledger
  -- that is under the terms of others: it gets a copy.
  return function(number, looks)
    local key, others, place, since = named(number)
    local model = sub(key, #full_prefix + 1)
    local s, profile = get_scope(model), profile_at(place)
    local terms, learnt = profile.terms, nil
    if s[8] ~= "" then
      rare = rare or load_rare()
      local is_set_back
      learnt, is_set_back = rare.learnt_limits(s)
      if is_set_back then
        rare.set_learnt_limits(s, learnt)
        touch(s)
      end
      terms = learnt_terms(profile, learnt)
    end
    if looks then
      rare = rare or load_rare()
      if rare.differs(s, terms) then s, looks = rare.copy(s), "a copy" end
    end
    for i = 1, #terms do
      open_ledger(s, terms[i])
    end
    local deployment = { scope = s, terms = terms, learnt = learnt, marks = {}, marked = "", name = " " .. model .. "@" }
    if since ~= 0 and since ~= s[SINCE] then
      deployment.lost = true
      miss(s)
    end
    deployment.is_foreign = s[FOREIGN]
    deployment.closed = s[FOREIGN] or deployment.lost or s[FORMER] == 1 and record_quiet_until(s) > 0
    if s[3] > 0 or others_until > now then
      cooldowns = cooldowns or load_cooldowns()
      cooldowns.see(deployment, others)
    end
    if deployment.is_foreign then
      rare = rare or load_rare()
      deployment.cooling = rare.unreadable(deployment.unreadable or model)
    end
    if looks ~= "a copy" then opened[number] = deployment end
    return deployment
  end
end)()
