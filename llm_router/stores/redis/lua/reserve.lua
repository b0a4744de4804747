-- Reserving: which candidate has room, what is taken from it, and when the others will have room.

local numbers = {}   -- the reply
local length = 0     -- how many numbers there are
local descriptions = {}

local function reply(a, b)
  numbers[length + 1], numbers[length + 2] = a, b
  length = length + 2
end

-- Whether a demand certainly fits now: true for nearly every reserve, which then needs nothing else.
local function fits(deployment, requests, tokens)
  local s, all = deployment.scope, deployment.terms
  for i = 1, #all do
    local terms = all[i]
    local most, b = terms.limit - (terms.tokens and tokens or requests), terms.at
    -- The first number of a ledger is what is used; that of a steady one is a debt, which drains.
    if terms.kind == STEADY or s[b + USED] > most or terms.daily and s[b + CARRY] > most then return false end
  end
  return not deployment.cooling
end

-- Take what fits, reply what remains, and return where it was taken from, in stored form.
local function take(deployment, requests, tokens)
  local s, all, marks, remarked = deployment.scope, deployment.terms, deployment.marks, false
  local share, daily_share = 1, 1
  for i = 1, #all do
    local terms = all[i]
    local b, kind, limit = terms.at, kinds[terms.kind], terms.limit
    local mark = kind.take(s, b, terms.tokens and tokens or requests)
    if mark ~= marks[i] then marks[i], remarked = mark, true end
    local taken = terms.kind == STEADY and kind.used(s, b) or s[b + USED]
    local remains = taken < limit and 1 - taken / limit or 0
    if terms.daily then
      if remains < daily_share then daily_share = remains end
    elseif remains < share then
      share = remains
    end
  end
  if s[9] ~= "" then
    changing = changing or load_changing()
    changing.count_all(s, all, requests, tokens)
  end
  if remarked then deployment.marked = format(all.taken_from, unpack(marks)) end
  reply(share * 2 ^ 53, daily_share * 2 ^ 53)
  length = length + 1
  numbers[length] = s[SINCE]
  return deployment.marked
end

-- What is needed as soon as one candidate is refused, or probes a cooldown.
local function load_refusing()
  local numbered = {}  -- description and end of a cooldown -> their number
  local refusing = {}

  -- Return the number that stands for a cooldown in the reply: by its end as text, and its description.
  function refusing.describe(ends, description)
    local name = ends .. description
    if not numbered[name] then
      insert(descriptions, description)
      insert(descriptions, ends)
      numbered[name] = #descriptions / 2
    end
    return numbered[name]
  end

  -- When a demand fits (now, if it does), and the metric that it waits for the longest, or 0 for a cooldown.
  function refusing.room_at(deployment, requests, tokens)
    local latest, reason = now, 0
    local cooling, s, all = deployment.cooling, deployment.scope, deployment.terms
    if cooling then latest = cooling[3] end
    for i = 1, #all do
      local terms = all[i]
      local amount = terms.tokens and tokens or requests
      if amount > 0 then
        local moment = kinds[terms.kind].room_at(s, terms.at, amount, terms)
        if moment > now then
          moment = min(moment, terms.limit_expires) -- a learnt limit of 0 does not last for ever
          if moment > latest then latest, reason = moment, terms.metric end
        end
      end
    end
    return latest, reason
  end

  function refusing.refuse(deployment, retry_at, reason)
    local cooling, wake_at = deployment.cooling, refusing.room_at(deployment, 1, 1)
    local code = reason + (cooling and 16 * refusing.describe(cooling[6], cooling[7]) or 0)
    if wake_at < retry_at then
      reply(code, retry_at)
      length = length + 1
      numbers[length] = wake_at
    else
      reply(code + 8, retry_at)
    end
  end

  -- The latest cooldown of a deployment whose model cools down until a time, if at all: its end, and its number.
  local function latest_cooldown(number, cools, value, at)
    local cooling, ends, description
    if others_until > now then
      local _, others = named(number)
      cooldowns = cooldowns or load_cooldowns()
      cooling = cooldowns.latest(others)
    end
    if cools > 0 then
      ends, description = unpack_from("<ss", value, at)
      if not cooling or exact(cooling[6]) <= exact(ends) then return cools, refusing.describe(ends, description) end
    end
    if not cooling then return now, 0 end
    return cooling[3], refusing.describe(cooling[6], cooling[7])
  end

  -- When so many tokens have room, by the steps of a value, if not by a certain one; nil if they do not reach as far.
  local function find_step(value, at, count, step, tokens)
    while step <= count do
      local less, most, moment = unpack_from("<dxxxxxxxxdd", value, at + 16 * step - 16)
      if tokens > most then
        step = step + 1
      elseif tokens <= less then
        step = step - 1
      else
        return moment
      end
    end
  end

  -- The numbers of the candidates of a shortlist, of each of which it is read now what is known of it.
  function refusing.look_up(shortlist, count)
    local keys, asked, knowledge, ARGV, length = {}, {}, knowledge, ARGV, 0
    local list = { unpack_from("<" .. string.rep("I2", count), ARGV[5], shortlist + 2) }
    list[count + 1] = nil -- where the next one begins
    for i = 1, count do
      local number = list[i]
      local known = knowledge[number]
      if known == nil or known == true then
        length = length + 1
        keys[length], asked[length], knowledge[number] = ARGV[MODELS + number], number, false
        if sole_profile == 0 then
          local _, _, place = named(number)
          profile_of[number] = unpack_from("<I6", ARGV[7], place)
        end
      end
    end
    if length > 0 then
      local values = call("MGET", unpack(keys))
      for i = 1, length do
        local value = values[i]
        knowledge[asked[i]] = value and #value >= SHORTEST and value -- anything else that is as long fits no profile
      end
    end
    return list
  end

  -- Whether the scope of a deployment changed in this call, so that what was known of it holds no longer.
  local function is_changed(number)
    local s = scopes[sub((named(number)), #full_prefix + 1)]
    return s and s[CHANGED]
  end

  local function too_little(number, place)
    knowledge[number] = false
    return place
  end

  -- Refuse a demand of one request by what is known of the candidates from one on; return the first one of which too
  -- little is known, or which has room.
  function refusing.refuse_known(list, first, tokens)
    local unpack_from, numbers, knowledge, now = unpack_from, numbers, knowledge, now
    local has_others, has_changes, sole = others_until > now, touched[1], sole_profile ~= 0 and sole_profile
    for i = first, #list do
      local number = list[i]
      local value = knowledge[number]
      if not value or has_changes and is_changed(number) then return i end
      local profile, from, till, cools, requests_at, fit, wakes_at, metrics, count, mean, at = unpack_from(KNOWN, value)
      if now < from or now >= till or profile ~= (sole or profile_of[number]) then return too_little(number, i) end
      local latest, code = now, 0
      if has_others or cools > 0 then
        latest, code = latest_cooldown(number, cools, value, at + 16 * count + 16)
        code = 16 * code
      end
      if wakes_at < latest then wakes_at = latest end
      if requests_at > latest then latest, code = requests_at, code + metrics % 8 end
      if tokens > fit then
        if count == 0 then return too_little(number, i) end
        local step = (tokens - fit) / mean -- a guess, which is right if all steps are as large
        step = step < count and step - step % 1 + 1 or count
        local less, most, moment = unpack_from("<dxxxxxxxxdd", value, at + 16 * step - 16)
        if tokens > most or tokens <= less then
          moment = find_step(value, at, count, step, tokens)
          if not moment then return too_little(number, i) end
        end
        if moment > latest or moment == latest and metrics >= 64 and code % 16 ~= 0 then
          latest, code = moment, code - code % 16 + floor(metrics % 64 / 8)
        end
      end
      if latest == now then return i end
      if wakes_at < latest then
        numbers[length + 1], numbers[length + 2], numbers[length + 3] = code, latest, wakes_at
        length = length + 3
      else
        numbers[length + 1], numbers[length + 2] = code + 8, latest
        length = length + 2
      end
    end
    return #list + 1
  end

  -- Let the request that was granted probe the half-open cooldowns that have ended, and reply which.
  function refusing.probe(deployment)
    length = length + 1
    numbers[length] = #deployment.due
    for _, s in ipairs(deployment.due) do
      length = length + 1
      numbers[length] = refusing.describe(s[6], s[7])
      cooldowns.probe(s)
    end
    opened = {}
  end

  return refusing
end

local refusing -- its functions, once needed

local function grant(id, deployment, requests, tokens, lasts)
  local s, expires = deployment.scope, now + lasts
  add_reservation(id, lasts, requests, tokens, deployment.name, take(deployment, requests, tokens))
  local kept = max(expires, now + deployment.terms.keeping)
  if kept > s[2] then s[2] = kept end
  touch(s)
  if deployment.due then
    refusing = refusing or load_refusing()
    refusing.probe(deployment)
  end
end

local FEW, SOME = 8, 4

-- Refuse because of something that was lost.
local function refuse_closed(deployment)
  reply((deployment.lost and 6 or 5) + 8, max(now, record_quiet_until(deployment.scope)))
end

-- Refuse all candidates until a time, because the shard has just lost something.
local function refuse_all(shortlist, start, count, till)
  for i = 1, count do
    local _, _, _, since = named((unpack_from("<I2", ARGV[5], shortlist + 2 * i)))
    reply((since ~= 0 and since < epoch and 6 or 5) + 8, till)
  end
  numbers[start] = 4 * count
end

local function reserve(id, shortlist, requests, tokens, lasts)
  local start, count, number = length + 1, unpack_from("<I2I2", ARGV[5], shortlist)
  local i, list = 1, nil
  length = start
  spent = spent + 6
  local till = reset_at > 0 and quiet_until() or 0
  if till > 0 then return refuse_all(shortlist, start, count, till) end
  while i <= count do
    -- Mostly the first candidate has room. What is known of all of them is read once it has not.
    if i > 1 or knowledge[number] then
      refusing = refusing or load_refusing()
      list = list or refusing.look_up(shortlist, count)
      if requests == 1 then
        local from = i
        i = refusing.refuse_known(list, from, tokens)
        spent = spent + i - from
        if i > count then break end
      end
      number = list[i]
    end
    local deployment = opened[number] or open_deployment(number)
    local retry_at, reason = now, nil
    if deployment.closed then
      if deployment.is_foreign then
        refusing = refusing or load_refusing()
        refusing.refuse(deployment, deployment.cooling[3], 7)
      else
        refuse_closed(deployment)
      end
    else
      if not fits(deployment, requests, tokens) then
        refusing = refusing or load_refusing()
        retry_at, reason = refusing.room_at(deployment, requests, tokens)
      end
      if retry_at == now then
        numbers[start] = 4 * (i - 1) + (deployment.due and 2 or 1)
        return grant(id, deployment, requests, tokens, lasts)
      end
      refusing.refuse(deployment, retry_at, reason)
    end
    spent = spent + 6
    -- Noting what is known costs more than refusing. It pays where many ask, so some with many candidates do it: those
    -- whose ids end in a certain way.
    local pays = count > FEW and (byte(id, -1) or 0) % SOME == 0 and not deployment.closed
    if pays and struct and requests == 1 and not knowledge[number] then
      full = full or load_full()
      full.note(number, deployment, tokens)
    end
    i = i + 1
  end
  numbers[start] = 4 * count
end
