-- What all parts of the script share, and packed numbers and texts in the format of the server's struct library.
--
-- Redis re-creates all functions on every call, and each costs more the more top-level locals it captures.
-- So each part of the script is put into a function inside the part before it (scripts.py), what is rarely needed is
-- created only when it is needed, and numbers travel packed instead of as JSON.

local call = redis.call
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local byte, format, sub, match = string.byte, string.format, string.sub, string.match
local concat, insert = table.concat, table.insert

local NEVER = 2 ^ 62 -- later than every time

local now            -- microseconds, set by batch.lua
local epoch = 0      -- when the epoch of the shard began; see epoch.lua
local corrupt        -- a key that holds something else, so that nothing can be done
local fetched = {}   -- key -> its value, or false
local spent = 0      -- roughly how many microseconds the call has taken so far; see batch.lua

local texts = {}     -- number -> its decimal digits: formatting is expensive, and numbers recur

local function digits(number)
  local text = texts[number]
  if not text then
    text = format("%d", number)
    texts[number] = text
  end
  return text
end

local unpack_from = struct and struct.unpack
if not struct then
  -- The part of struct.unpack that messages need, for fakeredis, which has no struct library.
  function unpack_from(layout, text, at)
    local values = {}
    for kind, width in string.gmatch(layout, "([BHIcs])(%d*)") do
      if kind == "s" then
        local stop = string.find(text, "\0", at, true)
        insert(values, sub(text, at, stop - 1))
        at = stop + 1
      elseif kind == "c" then
        local length = table.remove(values)
        insert(values, sub(text, at, at + length - 1))
        at = at + length
      else
        local size, value = kind == "B" and 1 or kind == "H" and 2 or tonumber(width), 0
        for i = at + size - 1, at, -1 do
          value = value * 256 + byte(text, i)
        end
        insert(values, value)
        at = at + size
      end
    end
    insert(values, at)
    return unpack(values)
  end
end
