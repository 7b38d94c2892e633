-- Checks the body of an inference request against the table of limits (envoy/limits.yaml) in one pass: the type and the amount of each
-- field. A field is checked only at the place from which llama.cpp reads it: a tool may have a parameter `model`, `url` or `id_slot`.
--
-- The walk reads the text with json_text, texts are checked by request_texts, sums by request_totals, and products of several fields at the
-- end by request_products. The first limit that is exceeded ends the walk; the trail of names then leads to the field at fault
-- (request_refusal).

local json_text = require("json_text")
local request_products = require("request_products")
local request_refusal = require("request_refusal")
local request_shapes = require("request_shapes")
local request_texts = require("request_texts")
local request_totals = require("request_totals")
local schema_cost = require("schema_cost")
local table_of_limits = require("limits_table")

local byte, find, sub = string.byte, string.find, string.sub
local QUOTE, BRACE, BRACKET, CLOSING_BRACE, CLOSING_BRACKET = 34, 123, 91, 125, 93
local skip = json_text.skip
local exceeded, broken, unescaped = json_text.exceeded, json_text.broken, json_text.unescaped
local add, check_text, check_distinct, keep_largest = request_totals.add, request_texts.check, request_texts.check_distinct, request_products.keep

local request_limits = {}

-- Maximum number of bytes that are read of a tag: more than any known tag has.
local MAX_TAG = 384
-- Tokens of a context if no server declares one: the mesh's default for a slot.
local DEFAULT_CONTEXT = 4096

-- State of the current body.
local text, limits, sums = "", {}, {}
-- The names and numbers that lead to the current value.
local trail, level = {}, 0

local function refused(code, message)
  error({ code = code, message = message }, 0)
end

local value

-- Returns the shape of a field, or nil if it depends on a tag that has not been read yet.
local function shape_of_field(rule, name, tag)
  if rule.waiting and rule.waiting[name] then
    if tag == nil then
      return nil
    end
    local tagged = rule.tagged[tag]
    if tagged and tagged[name] then
      return tagged[name]
    end
  end
  return rule.fields[name] or rule.others
end

-- Reads the fields that waited for the tag of their object, each {name, start}. The first pass has already counted them once.
local function check_waiting(waiting, rule, tag)
  local before = json_text.counted()
  for _, field in ipairs(waiting) do
    trail[level] = field[1]
    value(field[2], shape_of_field(rule, field[1], tag or false))
    json_text.count_from(before)
  end
end

local function check_object(at, rule)
  local entries, ended = 0, nil
  local most, keys, seen = rule.entries and limits[rule.entries], rule.keys, nil
  local tag, waiting
  at, ended = json_text.enter(at)
  level = level + 1
  while at do
    entries = entries + 1
    if most and entries > most then
      trail[level] = nil
      return exceeded(rule.entries, entries, true)
    end
    local quote, start = json_text.key(at)
    local name = unescaped(sub(text, at + 1, quote - 1))
    trail[level] = name
    if keys then
      check_text(keys, at + 1, quote - 1)
    end
    local stop
    if rule.fields[name] or name == rule.tag or (rule.waiting and rule.waiting[name]) then
      seen = seen or {}
      if seen[name] then
        return refused("invalid_value", "is given twice.")
      end
      seen[name] = true
    end
    local shape = shape_of_field(rule, name, tag)
    if shape then
      stop = value(start, shape)
    else
      waiting = waiting or {}
      waiting[#waiting + 1] = { name, start }
      stop = skip(start)
    end
    if name == rule.tag then
      tag = byte(text, start) == QUOTE and unescaped(sub(text, start + 1, math.min(stop - 2, start + MAX_TAG))) or false
    end
    at, ended = json_text.next(stop, CLOSING_BRACE)
  end
  if waiting then
    check_waiting(waiting, rule, tag)
  end
  trail[level] = nil
  level = level - 1
  return ended
end

-- Returns the number of members of a list of which `counted` were read, the last one at `at`.
local function members(at, counted)
  local all = pcall(function()
    while at do
      at = json_text.next(skip(at), CLOSING_BRACKET)
      counted = counted + (at and 1 or 0)
    end
  end)
  return counted, not all
end

local function check_list(at, rule)
  local items, index, ended = 0, -1, nil
  local most, shape, seen = rule.items and limits[rule.items], rule.of, rule.distinct and {} or nil
  at, ended = json_text.enter(at)
  level = level + 1
  while at do
    index = index + 1
    if not (rule.except_numbers and find(text, "^[-%d]", at)) then
      items = items + 1
      if most and items > most then
        trail[level] = nil
        return exceeded(rule.items, members(at, items))
      end
      if rule.total then
        add(rule.total, 1)
      end
    end
    trail[level] = index
    local stop = value(at, shape)
    if seen and byte(text, at) == QUOTE then
      check_distinct(seen, unescaped(sub(text, at + 1, stop - 2)))
    end
    at, ended = json_text.next(stop, CLOSING_BRACKET)
  end
  trail[level] = nil
  level = level - 1
  if rule.items == "prompts.items" then
    request_products.keep_prompts(items)
  end
  return ended
end

local function check_number(rule, number, written)
  if (rule.most or rule.counts) and number < -1 then -- The engine truncates it to 32 bits, which changes its value.
    return refused("invalid_value", "may not be less than -1.")
  end
  if rule.counts then
    keep_largest(rule.counts, rule.endless and number < 0 and math.huge or number)
  end
  if rule.most and number > limits[rule.most] then
    return exceeded(rule.most, written)
  end
  if rule.least and number < limits[rule.least] then
    return exceeded(rule.least, written)
  end
end

local KINDS = { text = "a string", number = "a number", flag = "a boolean", list = "a list", object = "an object" }

local function wrong_kind(shape, kind)
  local wanted = {}
  for _, each in ipairs({ "text", "number", "flag", "list", "object" }) do
    wanted[#wanted + 1] = shape[each] and KINDS[each] or nil
  end
  return refused("invalid_type", "is " .. KINDS[kind] .. " and must be " .. table.concat(wanted, " or ") .. ".")
end

-- Checks the value at `at` against its shape. Returns its end.
function value(at, shape)
  local mark = byte(text, at)
  if shape.schema then
    return schema_cost.check(text, at, limits, sums)
  elseif shape.refused then
    return refused("unsupported_parameter", "may not be sent: " .. shape.refused .. ". Leave it out.")
  elseif mark == QUOTE then
    local quote = json_text.string(at)
    if shape.text then
      check_text(shape.text, at + 1, quote - 1)
    elseif not shape.any then
      return wrong_kind(shape, "text")
    end
    return quote + 1
  elseif mark == BRACE then
    if shape.object then
      return check_object(at, shape.object)
    end
    return shape.any and skip(at) or wrong_kind(shape, "object")
  elseif mark == BRACKET then
    if shape.list then
      return check_list(at, shape.list)
    end
    return shape.any and skip(at) or wrong_kind(shape, "list")
  end
  local word, ended = json_text.word(at)
  if word == "true" or word == "false" then
    if not shape.flag and not shape.any then
      return wrong_kind(shape, "flag")
    end
    if word == "true" and type(shape.flag) == "table" then
      keep_largest(shape.flag.counts, shape.flag.as)
    end
  elseif word == "null" then
    if shape.number and shape.number.endless then
      keep_largest(shape.number.counts, math.huge)
    end
  else
    local number = find(word, "^-?%d[%d.eE+-]*$") and tonumber(word)
    if not number then
      return broken()
    elseif shape.number then
      check_number(shape.number, number, word)
    elseif not shape.any then
      return wrong_kind(shape, "number")
    end
  end
  return ended
end

local function exceeded_by(field, name, amount)
  trail[1], level = field, 1
  return exceeded(name, amount)
end

-- The byte order mark of UTF-8, which the engine's parser also skips.
local BYTE_ORDER_MARK = "^\239\187\191"

local function read(shape, context)
  local _, mark = find(text, BYTE_ORDER_MARK)
  local at = find(text, "[^ \t\r\n]", (mark or 0) + 1)
  if not at or byte(text, at) ~= BRACE then
    return broken()
  end
  at = value(at, shape)
  if find(text, "[^ \t\r\n]", at) then
    return broken()
  end
  local field, name, amount = request_products.excess(limits, context)
  if field then
    trail[1], level = field, 1
    return exceeded(name, amount)
  end
end

-- Reads the body of a request for a path. Returns nil and {kind, code, param, message} for a refused body, else the facts for routing and
-- accounting: {model, prompts, answers}. `answers` counts the answers to all prompts. `most_prompt`: the longest prompt that fits the
-- context of any server, or nil. A path without a shape raises an error.
function request_limits.read(path, body, most_prompt)
  local shape = request_shapes.of(path)
  text, limits, level = body, table_of_limits.limits, 0
  local context = most_prompt and most_prompt / limits["prompt.bytes_per_token"] or DEFAULT_CONTEXT
  local from_context = most_prompt and most_prompt < limits["prompt.bytes"]
  if from_context then
    limits = setmetatable({ ["prompt.bytes"] = most_prompt }, { __index = table_of_limits.limits })
  end
  json_text.open(text, limits)
  request_texts.open(text, limits)
  request_products.open()
  sums = request_totals.open(text, limits)
  local passed, why = pcall(read, shape, context)
  -- The body may be large: release it before the next request.
  text = ""
  request_texts.close()
  request_totals.open("", limits)
  if passed then
    return { model = request_texts.model(), prompts = request_products.prompts(), answers = request_products.answers() }
  end
  if type(why) ~= "table" then
    error(why, 0)
  end
  request_refusal.complete(why, trail, level, limits, from_context)
  return nil, why
end

return request_limits
