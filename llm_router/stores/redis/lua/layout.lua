-- The stored state of a scope: the ledgers of a (project, model), the limits learnt for it, its cooldown.
--
-- Each scope is one value, so that a call reads and writes it at most once. In the script it is an array:
--   1  version of this format; as it is stored, plus 16 times the number of ledgers that follow, plus 128 if the scope
--      has a companion (full.lua)
--   2  when the last reservation on it is forgotten
--   3  when its cooldown ends; 0 if there is none
--   4  when that end was set
--   5  1 if the cooldown is half-open: at its end one request goes first; else 0
--   6  its end as the caller gave it, as text: seconds, or inf
--   7  description of the cooldown
--   8  learnt limits, as text: metric, limit and end of each, a space after every number
--   9  daily ledgers that are kept aside, as text; see changing.lua
--  10  rolling ledgers for which the clock was set back, as text; see entries.lua
--  11  four ledgers (ledgers.lua), for metric 1 to 4, ten fields each; the kind is 0 if there is no ledger
-- followed by what is not stored: the name of the scope, its key, what is stored there, whether it changed, whether it
-- has a companion.
-- Times are in microseconds.

local METRICS = 4
local FIRST_LEDGER, LEDGER = 11, 10
local FIELDS = FIRST_LEDGER - 1 + METRICS * LEDGER
local SET_BACK = FIRST_LEDGER - 1
local NAME, KEY, STORED, CHANGED, FULL = FIELDS + 1, FIELDS + 2, FIELDS + 3, FIELDS + 4, FIELDS + 5

local touched = {}   -- the scopes that changed, in order

local function touch(s)
  if not s[CHANGED] then
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
