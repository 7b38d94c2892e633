-- Checks texts of a request's body against the table of limits: their length, their words, and grammars, schemas and media in them.

local grammar_cost = require("grammar_cost")
local json_text = require("json_text")
local media = require("media")
local request_totals = require("request_totals")
local word_length = require("word_length")

local byte, find, sub = string.byte, string.find, string.sub
local QUOTE, BRACE, BRACKET = 34, 123, 91
local exceeded, unescaped = json_text.exceeded, json_text.unescaped

local request_texts = {}

-- Maximum number of bytes that are read of a model's name: more than the longest name that can be served, written in escapes only.
local MAX_MODEL = 2048

-- State of the current body.
local text, limits, model = "", {}, nil

-- Refuses an item that `seen` already contains.
function request_texts.check_distinct(seen, item)
  if seen[item] then
    return error({ code = "invalid_value", message = "names " .. item .. " twice." }, 0)
  end
  seen[item] = true
end

-- Returns the depth of a text that is JSON itself.
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

-- Checks the text between `first` and `last` against its rule.
function request_texts.check(rule, first, last)
  local size = last - first + 1
  local most = rule.bytes and limits[rule.bytes]
  if most and size > most then
    size = size <= request_totals.ESCAPED * most and request_totals.said(first, last) or size
    if size > most then
      return exceeded(rule.bytes, size)
    end
  end
  if rule.total then
    request_totals.add_text(rule.total, first, last)
  end
  if rule.run and last - first >= limits[rule.run] then
    word_length.check(sub(text, first, last), rule.run, limits)
  end
  if rule.distinct then
    local seen = {}
    for letter in string.gmatch(unescaped(sub(text, first, last)), ".") do
      request_texts.check_distinct(seen, letter)
    end
  end
  if rule.reads == "media" or rule.reads == "base64" then
    request_totals.add("media.items", 1)
    media.check(text, first, last, rule.reads)
  elseif rule.reads == "json" then
    check_depth(unescaped(sub(text, first, last)), "messages.argument_depth")
  elseif rule.reads == "grammar" then
    grammar_cost.check(unescaped(sub(text, first, last)), limits)
  elseif rule.reads == "model" then
    model = unescaped(sub(text, first, math.min(last, first + MAX_MODEL)))
  end
end

-- The field `model` of the body, if it has been read.
function request_texts.model()
  return model
end

-- Starts a body.
function request_texts.open(body, most)
  text, limits, model = body, most, nil
end

-- Releases the body. The results stay.
function request_texts.close()
  text = ""
end

return request_texts
