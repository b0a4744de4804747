-- What every part uses; and packed numbers and texts, as the struct library of every server reads and writes them.
--
-- All parts make one script. A script is run anew at every call, its functions made anew with it, and a function is
-- the dearer to make the more local names of the outermost level it refers to. Hence the parts are functions that
-- look up what they share once, and what is rarely needed is made only when it is.

local call = redis.call
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local byte, format, sub, match = string.byte, string.format, string.sub, string.match
local concat, insert = table.concat, table.insert

local NEVER = 2 ^ 62 -- later than every moment

local now            -- microseconds, set by batch.lua
local corrupt        -- a key whose value is not ours
local fetched = {}   -- key -> its value, or false

local texts = {}     -- number -> its decimal digits: making them is dear, and they recur

local function digits(number)
  local text = texts[number]
  if not text then
    text = format("%d", number)
    texts[number] = text
  end
  return text
end

-- The little of struct.unpack that messages need, for fakeredis, which has no struct.
local function unpack_slowly(layout, text, at)
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

local unpack_from = struct and struct.unpack or unpack_slowly
