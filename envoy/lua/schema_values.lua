-- The values that a schema asks for: lists of types, numbers of repetitions, and constants. What the engine cannot count is refused.

local json_text = require("json_text")
local schema_budget = require("schema_budget")
local schema_text = require("schema_text")

local is_object, is_list = schema_text.is_object, schema_text.is_list
local add, exceeded = schema_budget.add, json_text.exceeded
local sub, max = string.sub, math.max

local schema_values = {}

local TYPES = { object = true, array = true, string = true, number = true, integer = true, boolean = true, null = true }

-- The conversion goes through a list of types one by one, and through lists in it too: as it must be, each is a name, and none is there
-- twice.
function schema_values.check_types(types)
  local seen = {}
  for _, name in ipairs(types) do
    if not TYPES[name] or seen[name] then
      error({ code = "invalid_value", message = "has a list of types that are not different names of types." }, 0)
    end
    seen[name] = true
  end
end

-- The largest number that the engine reads without cutting it to 32 bits, which makes another one of it.
local LARGEST_COUNT = 2147483647

-- The number of times that a schema asks for under a name, or `absent`.
local function count_of(of, name, absent)
  local number = of[name]
  if number == nil then
    return absent
  elseif type(number) ~= "number" or number < 0 or number > LARGEST_COUNT or number % 1 ~= 0 then
    error({ code = "invalid_value", message = "has a " .. name .. " that is not a whole number from 0 to " .. LARGEST_COUNT .. "." }, 0)
  end
  return number
end

-- More repetitions than these the engine does not write out: as an upper bound they are none, as a lower one it refuses them itself.
local MOST_WRITTEN = 2000

-- Counts the repetitions between the numbers under two names.
function schema_values.repetitions(of, least, most)
  local low = count_of(of, least, 0)
  local high = count_of(of, most, low)
  if high < low then -- The engine counts down without an end.
    error({ code = "invalid_value", message = "has a schema whose " .. most .. " is less than its " .. least .. "." }, 0)
  end
  add("schema.repetitions", high <= MOST_WRITTEN and high or math.min(low, MOST_WRITTEN))
end

-- Bytes that a value has when it is written.
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

-- How many bytes two values must share at their beginning to count as alike: that many tell apart what the next tokens are tried against.
local ALIKE_BYTES = 3

-- Constants among which one place chooses. All are tried for the first token, those that begin alike for the next ones too.
-- Returns how many begin alike.
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
