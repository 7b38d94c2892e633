-- Reads a JSON schema of a body into tables: an object is {names, of}, its names in order and its values by name; a list has the field
-- `list`. A duplicate key is refused, because the cost of the schema would depend on which of them the engine uses.

local json_text = require("json_text")
local word_length = require("word_length")
local exceeded, unescaped = json_text.exceeded, json_text.unescaped
local byte, sub = string.byte, string.sub
local QUOTE, BRACE, BRACKET, CLOSING_BRACE, CLOSING_BRACKET = 34, 123, 91, 125, 93

local schema_text = {}

-- Stands for null.
local NOTHING = {}

local text, limits
-- Position at which the schema must have ended.
local last

local read

local function read_object(at)
  local names, of, ended = {}, {}, nil
  at, ended = json_text.enter(at)
  while at do
    if at > last then
      return exceeded("schema.bytes", limits["schema.bytes"] + 1, true)
    end
    local quote, start = json_text.key(at)
    local name = unescaped(sub(text, at + 1, quote - 1))
    if of[name] ~= nil then
      error({ code = "invalid_value", message = "has the key " .. sub(name, 1, 64) .. " twice." }, 0)
    end
    names[#names + 1] = name
    of[name], at = read(start)
    at, ended = json_text.next(at, CLOSING_BRACE)
  end
  return { names = names, of = of }, ended
end

local function read_list(at)
  local list, ended = { list = true }, nil
  at, ended = json_text.enter(at)
  while at do
    if at > last then
      return exceeded("schema.bytes", limits["schema.bytes"] + 1, true)
    end
    list[#list + 1], at = read(at)
    at, ended = json_text.next(at, CLOSING_BRACKET)
  end
  return list, ended
end

-- Returns the value that begins at `at`, and its end.
function read(at)
  local mark = byte(text, at)
  if mark == QUOTE then
    local quote = json_text.string(at)
    if quote > last then
      return exceeded("schema.bytes", limits["schema.bytes"] + 1, true)
    elseif quote - at - 1 > limits["prompt.run_bytes"] then
      word_length.check(sub(text, at + 1, quote - 1), "prompt.run_bytes", limits)
    end
    return unescaped(sub(text, at + 1, quote - 1)), quote + 1
  elseif mark == BRACE then
    return read_object(at)
  elseif mark == BRACKET then
    return read_list(at)
  end
  local word, stop = json_text.word(at)
  local number = tonumber(word)
  if number then
    return number, stop
  elseif word == "true" or word == "false" then
    return word == "true", stop
  end
  return NOTHING, stop
end

-- Returns the value that begins at `at` of the body and may take `bytes` of it, and its end.
function schema_text.read(body, at, bytes, most)
  text, limits, last = body, most, at + bytes
  local value, ended = read(at)
  text = nil
  return value, ended
end

function schema_text.is_object(value)
  return type(value) == "table" and value.of ~= nil
end

function schema_text.is_list(value)
  return type(value) == "table" and value.list == true
end

return schema_text
