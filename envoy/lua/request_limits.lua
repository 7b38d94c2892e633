-- Holds the body of an inference request against the table of limits (envoy/limits.yaml): what each field may be and how much of it, by its place, in one pass.
-- A name counts only at the place that llama.cpp reads it from: a tool may have a parameter `model`, `url` or `id_slot`.

local json_text = require("json_text")
local media = require("media")
local request_refusal = require("request_refusal")
local request_shapes = require("request_shapes")
local schema_cost = require("schema_cost")
local grammar_cost = require("grammar_cost")
local word_length = require("word_length")
local table_of_limits = require("limits_table")

local byte, find, sub = string.byte, string.find, string.sub
local QUOTE, BRACE, BRACKET, CLOSING_BRACE, CLOSING_BRACKET = 34, 123, 91, 125, 93
local skip = json_text.skip
local exceeded, broken, unescaped = json_text.exceeded, json_text.broken, json_text.unescaped

local request_limits = {}

-- Bytes that are read of a model's name: more than the longest that can be served, if each is written as an escape.
local LONGEST_MODEL = 2048
-- Bytes that are read of a tag: more than any that means something.
local LONGEST_TAG = 384
-- Tokens of a context if no server has said its own: what the mesh gives a slot by default.
local DEFAULT_CONTEXT = 4096

-- Of the body that is read now.
local text, limits, sums, model = "", {}, {}, nil
-- How many prompts it has, and the largest of the numbers that are multiplied.
local prompts, largest = 0, {}
-- The names and numbers that lead to the value that is read.
local trail, level = {}, 0

local function add(name, amount)
  local sum = (sums[name] or 0) + amount
  sums[name] = sum
  if sum > limits[name] then
    return exceeded(name, sum, true)
  end
end

local function refused(code, message)
  error({ code = code, message = message }, 0)
end

local function check_distinct(seen, item)
  if seen[item] then
    return refused("invalid_value", "names " .. item .. " twice.")
  end
  seen[item] = true
end

-- How deep a text is nested that is JSON itself.
local function check_depth(written, name)
  local depth, at = 0, 1
  while true do
    at = find(written, '["{}%[%]]', at)
    if not at then
      return
    end
    local mark = byte(written, at)
    if mark == QUOTE then
      repeat
        at = find(written, '["\\]', at + 1)
        if not at then
          return
        end
        local escaped = byte(written, at) == 92
        at = escaped and at + 1 or at
      until not escaped
    elseif mark == BRACE or mark == BRACKET then
      depth = depth + 1
      if depth > limits[name] then
        return exceeded(name, depth, true)
      end
    else
      depth = depth - 1
    end
    at = at + 1
  end
end

-- A text has at most six bytes for one of what it says, where it is written in escapes.
local ESCAPED = 6

-- The bytes of what the text between `first` and `last` says.
local function said(first, last)
  return #unescaped(sub(text, first, last))
end

-- Texts with escapes that are part of a sum, each {first, last}: until the sum exceeds its limit they count as they are written, which costs nothing to know.
local written = {}

-- Between these places of the body no backslash stands before the second. So a body is searched once, and what is read again by itself.
local no_escape_from, next_escape = 0, 0

local function has_escape(first, last)
  if first < no_escape_from then
    return find(sub(text, first, last), "\\", 1, true) ~= nil
  elseif first > next_escape then
    no_escape_from, next_escape = first, find(text, "\\", first, true) or math.huge
  end
  return next_escape <= last
end

local function add_text(name, first, last)
  local sum = (sums[name] or 0) + last - first + 1
  if has_escape(first, last) then
    written[name] = written[name] or {}
    table.insert(written[name], { first, last })
  end
  if sum > limits[name] and sum <= ESCAPED * limits[name] then
    for _, each in ipairs(written[name] or {}) do
      sum = sum - (each[2] - each[1] + 1) + said(each[1], each[2])
    end
    written[name] = nil
  end
  sums[name] = 0
  return add(name, sum)
end

-- The text between `first` and `last`.
local function check_text(rule, first, last)
  local size = last - first + 1
  local most = rule.bytes and limits[rule.bytes]
  if most and size > most then
    size = size <= ESCAPED * most and said(first, last) or size
    if size > most then
      return exceeded(rule.bytes, size)
    end
  end
  if rule.total then
    add_text(rule.total, first, last)
  end
  if rule.run and last - first >= limits[rule.run] then
    word_length.check(sub(text, first, last), rule.run, limits)
  end
  if rule.distinct then
    local seen = {}
    for letter in string.gmatch(unescaped(sub(text, first, last)), ".") do
      check_distinct(seen, letter)
    end
  end
  if rule.reads == "media" or rule.reads == "base64" then
    add("media.items", 1)
    media.check(text, first, last, rule.reads)
  elseif rule.reads == "json" then
    check_depth(unescaped(sub(text, first, last)), "messages.argument_depth")
  elseif rule.reads == "grammar" then
    grammar_cost.check(unescaped(sub(text, first, last)), limits)
  elseif rule.reads == "model" then
    model = unescaped(sub(text, first, math.min(last, first + LONGEST_MODEL)))
  end
end

local value

-- The shape of a field, or nil if that depends on a tag that was not read yet.
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

-- Reads the fields that waited for their object's tag, each {name, start}. They were passed over and counted once, as they count.
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
      tag = byte(text, start) == QUOTE and unescaped(sub(text, start + 1, math.min(stop - 2, start + LONGEST_TAG))) or false
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

-- How many members the list has of which `counted` were read, the last at `at`.
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
    prompts = math.max(prompts, items)
  end
  return ended
end

local function keep_largest(name, number)
  largest[name] = math.max(largest[name] or 0, number)
end

local function check_number(rule, number, written)
  if (rule.most or rule.counts) and number < -1 then -- Cut to 32 bits it would be another number.
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

-- Checks the value at `at` against its shape. Returns where it ends.
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

-- Limits of what several fields say together. `context`: the tokens of the largest context of any server.
local function check_products(context)
  local generations = math.max(largest.choices or 1, 1) * math.max(prompts, 1)
  if generations > limits.generations then
    return exceeded_by("n", "generations", generations)
  end
  -- With logprobs: true as many are listed as top_logprobs says, or what it stands for without it.
  local listed = largest.listed and (largest.top or largest.listed) or 0
  if listed > limits.probabilities then
    return exceeded_by("logprobs", "probabilities", listed)
  end
  local alternatives = math.max(largest.probabilities or 0, listed) * generations
  local tokens = largest.tokens or math.huge
  alternatives = alternatives > 0 and alternatives * (tokens < math.huge and tokens or context) or 0
  if alternatives > limits["probabilities.total"] then
    return exceeded_by("logprobs", "probabilities.total", ("%d"):format(alternatives))
  end
end

-- The mark of a UTF-8 text, which the engine's parser passes over too.
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
  check_products(context)
end

-- Reads the body of a request for a path. Returns nil and {kind, code, param, message} for one that may not pass, else what routing and accounting need of it:
-- {model, prompts, answers}, where `answers` are those to all prompts.
-- `most_prompt`: the longest prompt that fits the context of any server, or nil. A path that has no shape raises an error.
function request_limits.read(path, body, most_prompt)
  local shape = request_shapes.of(path)
  text, limits, sums, written, model, level = body, table_of_limits.limits, {}, {}, nil, 0
  prompts, largest, no_escape_from, next_escape = 0, {}, 0, 0
  local context = most_prompt and most_prompt / limits["prompt.bytes_per_token"] or DEFAULT_CONTEXT
  local from_context = most_prompt and most_prompt < limits["prompt.bytes"]
  if from_context then
    limits = setmetatable({ ["prompt.bytes"] = most_prompt }, { __index = table_of_limits.limits })
  end
  json_text.open(text, limits)
  local passed, why = pcall(read, shape, context)
  text = ""
  if passed then
    local asked = math.max(prompts, 1)
    return { model = model, prompts = asked, answers = math.max(largest.choices or 1, 1) * asked }
  end
  if type(why) ~= "table" then
    error(why, 0)
  end
  request_refusal.complete(why, trail, level, limits, from_context)
  return nil, why
end

return request_limits
