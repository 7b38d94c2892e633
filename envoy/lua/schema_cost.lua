-- Counts beforehand what llama.cpp's conversion of a JSON schema to a grammar would do: it walks the schema as the conversion does, with references followed,
-- lists of types taken one by one and the parts of allOf put together, and stops where a limit is exceeded. The time here is bounded by the same limits.
--
-- What the conversion does not read (titles, examples, a property's data) is not counted; what it would refuse ends the walk at that place.

local json_text = require("json_text")
local grammar_cost = require("grammar_cost")
local schema_text = require("schema_text")
local exceeded = json_text.exceeded
local is_object, is_list = schema_text.is_object, schema_text.is_list
local sub, gmatch, match = string.sub, string.gmatch, string.match
local max = math.max

local schema_cost = {}

local limits, sums

-- Schemas that an integer with bounds counts for: the conversion writes out the ranges of its digits.
local BOUNDED_INTEGER = 20

local function add(name, amount)
  local sum = (sums[name] or 0) + amount
  sums[name] = sum
  if sum > limits[name] then
    return exceeded(name, sum, true)
  end
end

-- The names of properties that lead to the schema that is walked.
local trail, level = {}, 0

-- Walks a schema that stands under a name. Where a limit ends the walk, the trail still leads there.
local visit
local function visit_under(name, schema, depth, way)
  level = level + 1
  trail[level] = name
  local alternatives, ways = visit(schema, depth, way)
  level = level - 1
  return alternatives, ways
end

-- Of the schema that is walked: its root, for each reference the alternatives of what it stands for, those that lead back to one that is walked,
-- and how many times one led back so far.
local root, referred, leading_back, turns
-- The names of each list of required properties, which is read at each place that leads to it.
local named

-- As the conversion finds it: names may be empty, and an index is what a number begins with.
local function target_of(reference)
  if type(reference) ~= "string" or sub(reference, 1, 2) ~= "#/" then
    return nil
  end
  local found = root
  for step in gmatch(sub(reference, 2), "/([^/]*)") do
    if is_object(found) then
      found = found.of[step]
    elseif is_list(found) and match(step, "^%d+$") then
      found = found[tonumber(step) + 1]
    else
      found = nil
    end
    if found == nil then
      error({ code = "invalid_value", message = "has a reference that leads to nothing, or is not written in names and plain numbers." }, 0)
    end
  end
  return found
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

-- Returns in how many ways a text can be read at most inside it.
-- An object with these properties, each {name, schema}. The conversion writes a rule for each property that may be left out, and in it the names of all that follow.
local function visit_object(properties, required, more, depth, way)
  if #properties > limits["schema.properties"] then
    return exceeded("schema.properties", #properties)
  end
  local optional, ways = is_object(more) and 1 or 0, 1
  for _, property in ipairs(properties) do
    local name = property[1]
    if #name > limits["schema.name_bytes"] then
      return exceeded("schema.name_bytes", #name)
    end
    if not required[name] then
      optional = optional + 1
    end
    add("schema.grammar_bytes", 2 * (way + #name))
    local _, inner = visit_under(name, property[2], depth + 1, way + #name + 1)
    ways = max(ways, inner)
  end
  if is_object(more) then
    local _, inner = visit_under("additionalProperties", more, depth + 1, way + 16)
    ways = max(ways, inner)
  end
  if optional > limits["schema.optional"] then
    return exceeded("schema.optional", optional)
  end
  add("schema.grammar_bytes", optional * optional * (way + 24))
  return ways
end

local NONE = {}

local function names_in(list)
  if not is_list(list) then
    return NONE
  end
  local names = named[list]
  if not names then
    names = {}
    for _, name in ipairs(list) do
      names[name] = true
    end
    named[list] = names
  end
  return names
end

local TYPES = { object = true, array = true, string = true, number = true, integer = true, boolean = true, null = true }

-- The conversion goes through a list of types one by one, and through lists in it too: as it must be, each is a name, and none is there twice.
local function check_types(types)
  local seen = {}
  for _, name in ipairs(types) do
    if not TYPES[name] or seen[name] then
      error({ code = "invalid_value", message = "has a list of types that are not different names of types." }, 0)
    end
    seen[name] = true
  end
end

-- The properties that the parts of allOf bring together. A reference is followed at each place; one that leads to itself ends at the limit of the depth.
local function gather(part, is_required, into, required, depth)
  if depth > limits["schema.depth"] then
    return exceeded("schema.depth", depth, true)
  end
  if not is_object(part) then
    return
  end
  add("schema.nodes", 1)
  local of = part.of
  if of["$ref"] ~= nil then
    if type(of["$ref"]) == "string" and #of["$ref"] > limits["schema.reference_bytes"] then
      return exceeded("schema.reference_bytes", #of["$ref"])
    end
    return gather(target_of(of["$ref"]), is_required, into, required, depth + 1)
  end
  if is_object(of.properties) then
    for _, name in ipairs(of.properties.names) do
      into[#into + 1] = { name, of.properties.of[name] }
      if #into > limits["schema.properties"] then
        return exceeded("schema.properties", #into, true)
      end
      required[name] = required[name] or is_required
    end
  end
end

local function visit_all_of(parts, depth, way)
  local properties, required, ways = {}, {}, 1
  for _, part in ipairs(parts) do
    -- The conversion reads each part as a schema of its own before it puts them together, and a reference before anything that stands beside it.
    local _, inner = visit(part, depth + 1, way + 4)
    ways = max(ways, inner)
    local of = is_object(part) and part.of["$ref"] == nil and part.of
    local either = of and of.oneOf
    if of and either == nil then
      either = of.anyOf
    end
    if is_list(either) then
      for _, alternative in ipairs(either) do
        gather(alternative, false, properties, required, depth + 1)
      end
    else
      gather(part, true, properties, required, depth + 1)
    end
  end
  return max(ways, visit_object(properties, required, nil, depth, way))
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

local function repetitions(of, least, most)
  local low = count_of(of, least, 0)
  local high = count_of(of, most, low)
  if high < low then -- The engine counts down without an end.
    error({ code = "invalid_value", message = "has a schema whose " .. most .. " is less than its " .. least .. "." }, 0)
  end
  add("schema.repetitions", high <= MOST_WRITTEN and high or math.min(low, MOST_WRITTEN))
end

-- How many bytes two values must share at their beginning to count as alike: that many tell apart what the next tokens are tried against.
local ALIKE_BYTES = 3

-- Constants among which one place chooses. All are tried for the first token, those that begin alike for the next ones too.
local function visit_enum(values)
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

-- A schema of one type, or of none. Returns among how many alternatives it chooses, and in how many ways a text can be read at most inside it.
local function visit_type(of, kind, depth, way)
  if type(kind) ~= "string" or kind == "" then
    kind = nil -- As with none, which null and an empty name are.
  end
  local bounded = of.additionalProperties ~= nil and of.additionalProperties ~= true
  if is_list(of.allOf) and (kind == "string" or ((kind == nil or kind == "object") and of.properties == nil and not bounded)) then
    return 1, visit_all_of(of.allOf, depth, way)
  elseif kind == "object" or (kind == nil and (of.properties ~= nil or bounded)) then
    local properties = {}
    if is_object(of.properties) then
      for index, name in ipairs(of.properties.names) do
        properties[index] = { name, of.properties.of[name] }
      end
    end
    return 1, visit_object(properties, names_in(of.required), of.additionalProperties, depth, way)
  elseif kind == "array" or (kind == nil and (of.items ~= nil or of.prefixItems ~= nil)) then
    local items = of.items
    if items == nil then
      items = of.prefixItems
    end
    repetitions(of, "minItems", "maxItems")
    local ways = 1
    for _, item in ipairs(is_list(items) and items or { items }) do
      local _, inner = visit_under("items", item, depth + 1, way + 8)
      ways = max(ways, inner)
    end
    return 1, ways
  elseif kind == "integer" then
    if of.minimum ~= nil or of.maximum ~= nil or of.exclusiveMinimum ~= nil or of.exclusiveMaximum ~= nil then
      add("schema.nodes", BOUNDED_INTEGER - 1)
    end
  elseif kind == "string" or kind == nil then
    repetitions(of, "minLength", "maxLength")
    if type(of.pattern) == "string" then
      if #of.pattern > limits["schema.pattern_bytes"] then
        return exceeded("schema.pattern_bytes", #of.pattern)
      end
      add("schema.patterns", #of.pattern)
      return grammar_cost.pattern(of.pattern, limits, sums), 1
    end
  end
  return 1, 1
end

local BEGINNINGS = { array = "[", boolean = "t", integer = "0", null = "n", number = "0", string = '"' }

-- How a value of the schema begins: its first character, and for an object the name of its first property, with its value if there is only one.
local function beginning_of(schema, steps)
  if not is_object(schema) or steps > limits["schema.depth"] then
    return "any"
  end
  local of = schema.of
  if of["$ref"] ~= nil then
    return beginning_of(target_of(of["$ref"]), steps + 1)
  elseif is_object(of.properties) then
    local required = names_in(of.required)
    for _, name in ipairs(of.properties.names) do
      if required[name] then
        local first = of.properties.of[name]
        local only = is_object(first) and first.of.const
        if only == nil and is_object(first) and is_list(first.of.enum) and #first.of.enum == 1 then
          only = first.of.enum[1]
        end
        return "{" .. name .. "\0" .. ((type(only) == "string" or type(only) == "number") and only or "")
      end
    end
    return "{"
  elseif of.const ~= nil then
    return "=" .. tostring(of.const)
  end
  return BEGINNINGS[of.type] or "["
end

-- A schema at a depth, whose rule has a name of `way` bytes. Returns among how many alternatives it chooses, and in how many ways a text can be read at most
-- inside it: alternatives that begin alike multiply with those inside them, because the engine comes back to another place from each.
function visit(schema, depth, way)
  if not is_object(schema) then
    return 1, 1
  end
  add("schema.nodes", 1)
  add("schema.grammar_bytes", way + 32)
  if depth > limits["schema.depth"] then
    return exceeded("schema.depth", depth, true)
  end
  local of = schema.of
  local reference = of["$ref"]
  if reference ~= nil then
    if type(reference) ~= "string" then
      return 1, 1
    elseif #reference > limits["schema.reference_bytes"] then
      return exceeded("schema.reference_bytes", #reference)
    elseif leading_back[reference] then
      turns = turns + 1
    elseif not referred[reference] then
      local before = turns
      leading_back[reference] = true
      referred[reference] = { visit(target_of(reference), depth + 1, #reference + 3) }
      leading_back[reference] = turns > before or nil
    end
    local known = referred[reference]
    return known and known[1] or 1, known and known[2] or 1
  end
  local alternatives, ways = 0, 1
  local either = of.oneOf
  if either == nil then
    either = of.anyOf
  end
  if either ~= nil then
    local alike, leading, most = {}, {}, 1
    for _, alternative in ipairs(is_list(either) and either or {}) do
      local before = turns
      local chosen, inner = visit(alternative, depth + 1, way + 4)
      alternatives, ways = alternatives + chosen, max(ways, inner)
      local beginning = beginning_of(alternative, 1)
      alike[beginning] = (alike[beginning] or 0) + 1
      most = max(most, alike[beginning])
      if turns > before then
        leading[beginning] = (leading[beginning] or 0) + 1
        if leading[beginning] > limits["grammar.branches"] then
          return exceeded("grammar.branches", leading[beginning], true)
        end
      end
    end
    ways = ways * most
    if ways > limits["schema.ways"] then
      return exceeded("schema.ways", ways, true)
    end
  elseif is_list(of.type) then
    check_types(of.type)
    for _, kind in ipairs(of.type) do
      add("schema.nodes", 1)
      if of.const ~= nil or is_list(of.enum) then
        alternatives = alternatives + visit_enum(is_list(of.enum) and of.enum or { of.const })
      else
        local chosen, inner = visit_type(of, kind, depth + 1, way + 4)
        alternatives, ways = alternatives + chosen, max(ways, inner)
      end
    end
  elseif of.const ~= nil then
    visit_enum({ of.const })
  elseif is_list(of.enum) then
    alternatives = visit_enum(of.enum)
  else
    alternatives, ways = visit_type(of, of.type, depth, way)
  end
  if alternatives > limits["schema.alternatives"] then
    return exceeded("schema.alternatives", alternatives)
  end
  return max(1, alternatives), ways
end

-- Names of a trail that are told: the last of them, which are the nearest.
local MOST_NAMES, MOST_NAME_BYTES = 4, 64

-- Which property was walked, as in parent.child.
local function property()
  local names = {}
  for step = max(1, level - MOST_NAMES + 1), level do
    names[#names + 1] = sub(trail[step], 1, MOST_NAME_BYTES)
  end
  return (level > MOST_NAMES and "...." or "") .. table.concat(names, ".")
end

-- Counts the schema that begins at `at` of the body, and returns where it ends. `totals`: the sums over the body.
function schema_cost.check(body, at, most, totals)
  limits, sums = most, totals
  referred, leading_back, turns, named, level = {}, {}, 0, {}, 0
  local ended
  root, ended = schema_text.read(body, at, limits["schema.bytes"] - (sums["schema.bytes"] or 0), limits)
  add("schema.bytes", ended - at)
  local passed, why = pcall(visit, root, 1, 4)
  root = nil
  if not passed then
    if type(why) == "table" then
      why.property = property()
    end
    error(why, 0)
  end
  return ended
end

return schema_cost
