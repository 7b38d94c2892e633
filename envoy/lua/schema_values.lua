-- Reads values of a schema: lists of types, numbers of repetitions, and constants. A number that the engine cannot read is refused.

local json_text = require("json_text")
local schema_budget = require("schema_budget")
local schema_text = require("schema_text")

local is_object, is_list = schema_text.is_object, schema_text.is_list
local add, exceeded = schema_budget.add, json_text.exceeded
local sub, max = string.sub, math.max

local schema_values = {}

local TYPES = { object = true, array = true, string = true, number = true, integer = true, boolean = true, null = true }

-- Checks a list of types: each must be a name, and none may stand twice. The conversion goes through it one by one, and through lists in it
-- too.
function schema_values.check_types(types)
  local seen = {}
  for _, name in ipairs(types) do
    if not TYPES[name] or seen[name] then
      error({ code = "invalid_value", message = "has a list of types that are not different names of types." }, 0)
    end
    seen[name] = true
  end
end

-- The largest number that the engine does not cut to 32 bits, which would make another number of it.
local MAX_COUNT = 2147483647

-- Returns the number under a name of a schema, or `absent`.
local function count_of(of, name, absent)
  local number = of[name]
  if number == nil then
    return absent
  elseif type(number) ~= "number" or number < 0 or number > MAX_COUNT or number % 1 ~= 0 then
    error({ code = "invalid_value", message = "has a " .. name .. " that is not a whole number from 0 to " .. MAX_COUNT .. "." }, 0)
  end
  return number
end

-- The engine writes out at most this number of repetitions: it ignores a higher upper bound and refuses a higher lower bound.
local MAX_WRITTEN = 2000

-- Counts the repetitions between the numbers under two names.
function schema_values.repetitions(of, least, most)
  local low = count_of(of, least, 0)
  local high = count_of(of, most, low)
  if high < low then -- The engine counts down without an end.
    error({ code = "invalid_value", message = "has a schema whose " .. most .. " is less than its " .. least .. "." }, 0)
  end
  add("schema.repetitions", high <= MAX_WRITTEN and high or math.min(low, MAX_WRITTEN))
end

-- Returns the bytes of a value when it is written.
local function size(value)
  if type(value) == "string" then
    return #value + 2
  elseif is_object(value) then
    local sum = 2
    for _, name in ipairs(value.names) do
      sum = sum + #name + 4 + size(value.of[name])
    end
    return sum
  elseif is_list(value) then
    local sum = 2
    for _, item in ipairs(value) do
      sum = sum + size(item) + 1
    end
    return sum
  end
  return 8
end

-- Number of first bytes that two values must share to count as alike: the engine distinguishes other values with the next token.
local ALIKE_BYTES = 3

-- Counts the constants between which one place chooses. The engine tries all of them for the first token, and those that begin alike for
-- the next tokens too. Returns the number of those that begin alike.
function schema_values.constants(values, limits)
  add("schema.enum", #values)
  if #values > limits["schema.constants"] then
    return exceeded("schema.constants", #values)
  end
  local alike, most = {}, 0
  for _, value in ipairs(values) do
    add("schema.enum_bytes", size(value))
    local written = type(value) == "string" or type(value) == "number"
    local beginning = written and sub(tostring(value), 1, ALIKE_BYTES) or type(value)
    alike[beginning] = (alike[beginning] or 0) + 1
    most = max(most, alike[beginning])
  end
  return max(1, most)
end

return schema_values
