-- The arithmetic of one quota, as in llm_router/stores/ledger/; the differential test checks that the two agree.
--
-- Amounts are in requests or tokens, times in whole microseconds since the Unix epoch (doubles hold them exactly).
-- `now` is the same throughout one script call.
--
-- A ledger is a block of ten consecutive fields of its scope (scopes.lua), starting at index b: its kind, eight
-- numbers and a text. `terms` are the quota and its limit in force (batch.lua).
--
-- Each kind of ledger has the same functions:
--   configure(s, b, terms)          continue under these terms; returns whether that changes what is stored
--   open(s, b)                      bring it up to now; must be called before any of those below; returns whether that
--                                   must be stored, because the clock was set back
--   room_at(s, b, amount, terms)    returns now if the amount fits, else when it will, or NEVER
--   take(s, b, amount)              take it; returns the mark by which it can be corrected
--   correct(s, b, mark, change)     change what was taken at the mark
--   used(s, b), resets_at(s, b)
--   kept_until(s, b)                returns until when the ledger must be kept
--   holds(s, b)                     returns the newest time it knows, and when what is used changes next by itself
--   steps(s, b, terms, amount, least, most)
--                                   returns amounts above the least and up to the most, each followed by the time at
--                                   which there is room for it, as far as a given amount if possible. A steady ledger,
--                                   which changes all the time, has neither of these two
--   begin(s, b, amount, at)         begin with an amount that was taken until a time; it is new, and open
--   import(s, b, text)              returns its text, from that of format 2, once its numbers are there

local ROLLING, STEADY, DAILY = 1, 2, 3
local USED, CARRY = 1, 2 -- rolling and daily: what is used, once it is open; CARRY: daily only, see there

local missing_zone  -- a time zone that a stored ledger needs and the caller did not send
