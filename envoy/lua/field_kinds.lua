-- The kinds of fields of a contract: how each is described, and whether a value, or the text of a query's value, is of that kind.

local function whole(least, most)
  return function(value)
    local number = value.value or (value.text and value.text:find("^-?%d+$") and tonumber(value.text))
    return number and number % 1 == 0 and number >= least and number <= most
  end
end

local field_kinds = {
  string = { "must be a string", function(value) return value.kind == "string" end },
  bool = { "must be true or false", function(value) return value.kind == "bool" or value.text == "true" or value.text == "false" end },
  int32 = { "must be a whole number from -2147483648 to 2147483647", whole(-2 ^ 31, 2 ^ 31 - 1) },
  uint32 = { "must be a whole number from 0 to 4294967295", whole(0, 2 ^ 32 - 1) },
  int64 = { "must be a whole number of at most 63 bits", whole(-2 ^ 63, 2 ^ 63 - 1024) },
  uint64 = { "must be a whole number of at most 64 bits, not negative", whole(0, 2 ^ 64 - 2048) },
  number = { "must be a number", function(value) return value.value or (value.text and tonumber(value.text)) end },
  duration = {
    'must be a number of seconds followed by s, such as 30s',
    function(value) return value.text and value.text:find("^-?%d+%.?%d*s$") end,
  },
  timestamp = {
    "must be a moment such as 2030-12-31T23:59:59Z",
    function(value) return value.text and value.text:find("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d[%d.]*[Z+-]") end,
  },
  message = { "must be an object", function(value) return value.kind == "object" end },
  any = { "", function() return true end },
}

return field_kinds
