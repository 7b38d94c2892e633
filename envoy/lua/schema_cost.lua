-- Calculates the cost of llama.cpp's conversion of a JSON schema to a grammar. It walks the schema like the conversion: it follows
-- references, handles lists of types one by one and combines the parts of allOf. It stops at the first limit that is exceeded, so the same
-- limits bound its own time.
--
-- The walk does not count text that the conversion does not read (titles, examples, data of a property). It ends at a part that the
-- conversion would refuse.

local json_text = require("json_text")
local grammar_cost = require("grammar_cost")
local schema_beginnings = require("schema_beginnings")
local schema_budget = require("schema_budget")
local schema_document = require("schema_document")
local schema_text = require("schema_text")
local schema_values = require("schema_values")
local exceeded = json_text.exceeded
local is_object, is_list = schema_text.is_object, schema_text.is_list
local add, target_of, names_in = schema_budget.add, schema_document.target_of, schema_document.names_in
local constants, repetitions = schema_values.constants, schema_values.repetitions
local sub, max = string.sub, math.max

local schema_cost = {}

local limits, sums

-- Number of schemas that an integer with bounds counts as: the conversion writes out the ranges of its digits.
local BOUNDED_INTEGER = 20

-- The names of the properties that lead to the current schema.
local trail, level = {}, 0

-- Walks a schema under a name. If a limit ends the walk, the trail still leads to it.
local visit
local function visit_under(name, schema, depth, way)
  level = level + 1
  trail[level] = name
  local alternatives, ways = visit(schema, depth, way)
  level = level - 1
  return alternatives, ways
end

-- State of the current schema: for each reference the number of alternatives of its target, the references that lead back to a schema on
-- the walk, and how many times one has led back so far.
local referred, leading_back, turns

-- Counts an object with these properties, each {name, schema}. Returns the maximum number of ways in which a text inside it can be read.
-- The conversion writes a rule for each optional property, with the names of all properties that follow.
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

-- Returns the properties of all parts of an allOf. A reference is followed at each place; one that leads to itself ends at the limit of the
-- depth.
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
    -- The conversion reads each part as a schema of its own before it combines the parts, and a reference before the fields beside it.
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

-- Counts a schema of one type, or of no type. Returns the number of its alternatives, and the maximum number of ways in which a text inside
-- it can be read.
local function visit_type(of, kind, depth, way)
  if type(kind) ~= "string" or kind == "" then
    kind = nil -- null and an empty name count as no type.
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

-- Counts a schema at a depth. The name of its rule has `way` bytes. Returns the number of its alternatives, and the maximum number of ways
-- in which a text inside it can be read: alternatives that begin alike multiply with those inside them, because the engine returns from
-- each to another place.
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
      local beginning = schema_beginnings.of(alternative, 1, limits["schema.depth"])
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
    schema_values.check_types(of.type)
    for _, kind in ipairs(of.type) do
      add("schema.nodes", 1)
      if of.const ~= nil or is_list(of.enum) then
        alternatives = alternatives + constants(is_list(of.enum) and of.enum or { of.const }, limits)
      else
        local chosen, inner = visit_type(of, kind, depth + 1, way + 4)
        alternatives, ways = alternatives + chosen, max(ways, inner)
      end
    end
  elseif of.const ~= nil then
    constants({ of.const }, limits)
  elseif is_list(of.enum) then
    alternatives = constants(of.enum, limits)
  else
    alternatives, ways = visit_type(of, of.type, depth, way)
  end
  if alternatives > limits["schema.alternatives"] then
    return exceeded("schema.alternatives", alternatives)
  end
  return max(1, alternatives), ways
end

-- Maximum number of names of a trail in a message: the last ones, which are the nearest.
local MAX_NAMES, MAX_NAME_BYTES = 4, 64

-- Returns the current property, such as parent.child.
local function property()
  local names = {}
  for step = max(1, level - MAX_NAMES + 1), level do
    names[#names + 1] = sub(trail[step], 1, MAX_NAME_BYTES)
  end
  return (level > MAX_NAMES and "...." or "") .. table.concat(names, ".")
end

-- Counts the schema that begins at `at` of the body. Returns its end. `totals`: the sums over the body.
function schema_cost.check(body, at, most, totals)
  limits, sums = most, totals
  referred, leading_back, turns, level = {}, {}, 0, 0
  schema_budget.open(most, totals)
  local root, ended = schema_text.read(body, at, limits["schema.bytes"] - (sums["schema.bytes"] or 0), limits)
  add("schema.bytes", ended - at)
  schema_document.open(root)
  local passed, why = pcall(visit, root, 1, 4)
  schema_document.open(nil)
  if not passed then
    if type(why) == "table" then
      why.property = property()
    end
    error(why, 0)
  end
  return ended
end

return schema_cost
