local kinds = {} -- number -> the functions of a kind of ledger, once needed

local function kind_of(number)
  local kind = kinds[number]
  if not kind then
    kind = ({ load_rolling, load_steady, load_daily })[number]()
    kinds[number] = kind
  end
  return kind
end
