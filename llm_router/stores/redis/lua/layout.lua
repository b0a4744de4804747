-- The stored state of a scope: the ledgers of a (project, model), the limits learnt for it, its cooldown.
--
-- Each scope is one value, so that a call reads and writes it at most once. In the script it is an array:
--   1  version of this format; as it is stored, plus 16 times the number of ledgers that follow, plus 128 if the scope
--      has a companion (full.lua)
--   2  until when it is kept at least: a process may know it, or have a reservation on it
--   3  when its cooldown ends; 0 if there is none
--   4  when that end was set
--   5  1 if the cooldown is half-open: at its end one request goes first; else 0
--   6  its end as the caller gave it, as text: seconds, or inf
--   7  description of the cooldown
--   8  learnt limits, as text: of each the metric, the limit and the end, a space after every number, and then
--      ":<source>,<when it was learnt>,<what it is raised to>,<when>;"; earlier versions, which read it as well, left that
--      out, and kept what the provider had stated for a day
--   9  daily ledgers that are kept aside, as text; see changing.lua
--  10  rolling ledgers for which the clock was set back, as text; see entries.lua
--  11  when the record began (epoch.lua), and 12 the one that it goes on from; 0 for none, 1 if one was lost
--  13  of what the former counted, everything up to then is in this one; and 14 when it was last written
--  15  four ledgers (ledgers.lua), for metric 1 to 4, ten fields each; the kind is 0 if there is no ledger
-- followed by what is not stored: the name of the scope, its key, what is stored there, whether it changed, whether it
-- has a companion, and the key that holds something else, its own or that of format 2, or false; that is left as it is
-- until somebody lifts the scope.
-- Times are in microseconds.

local METRICS = 4
local FIRST_LEDGER, LEDGER = 15, 10
local FIELDS = FIRST_LEDGER - 1 + METRICS * LEDGER
local SET_BACK = 10
local SINCE, FORMER, GAP, WRITTEN = 11, 12, 13, 14
local NAME, KEY, STORED, CHANGED = FIELDS + 1, FIELDS + 2, FIELDS + 3, FIELDS + 4
local FULL, FOREIGN = FIELDS + 5, FIELDS + 6

local touched = {}   -- the scopes that changed, in order

local function touch(s)
  if not s[CHANGED] and not s[FOREIGN] then
    s[CHANGED] = true
    touched[#touched + 1] = s
  end
end

local function clear_ledger(s, b)
  for i = b, b + LEDGER - 2 do
    s[i] = 0
  end
  s[b + LEDGER - 1] = ""
end
