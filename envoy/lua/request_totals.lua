-- Sums over the body of a request, each with its limit: how many members, and how many bytes of text.
--
-- A text counts by its length after decoding. Texts with escapes count by their written length, which is known without work, until a sum
-- exceeds its limit.

local json_text = require("json_text")

local find, sub = string.find, string.sub
local exceeded, unescaped = json_text.exceeded, json_text.unescaped

local request_totals = {}

-- State of the current body.
local text, limits, sums = "", {}, {}

function request_totals.add(name, amount)
  local sum = (sums[name] or 0) + amount
  sums[name] = sum
  if sum > limits[name] then
    return exceeded(name, sum, true)
  end
end

-- Maximum written bytes per decoded byte: for a text written in escapes only.
local ESCAPED = 6
request_totals.ESCAPED = ESCAPED

-- Returns the decoded bytes of the text between `first` and `last`.
function request_totals.said(first, last)
  return #unescaped(sub(text, first, last))
end

-- Texts with escapes that are part of a sum, each {first, last}.
local written = {}

-- No backslash stands between these two positions of the body, so each part of a body is searched once.
local no_escape_from, next_escape = 0, 0

local function has_escape(first, last)
  if first < no_escape_from then
    return find(sub(text, first, last), "\\", 1, true) ~= nil
  elseif first > next_escape then
    no_escape_from, next_escape = first, find(text, "\\", first, true) or math.huge
  end
  return next_escape <= last
end

function request_totals.add_text(name, first, last)
  local sum = (sums[name] or 0) + last - first + 1
  if has_escape(first, last) then
    written[name] = written[name] or {}
    table.insert(written[name], { first, last })
  end
  if sum > limits[name] and sum <= ESCAPED * limits[name] then
    for _, each in ipairs(written[name] or {}) do
      sum = sum - (each[2] - each[1] + 1) + request_totals.said(each[1], each[2])
    end
    written[name] = nil
  end
  sums[name] = 0
  return request_totals.add(name, sum)
end

-- Starts a body. Returns the table of its sums by name.
function request_totals.open(body, most)
  text, limits, sums, written = body, most, {}, {}
  no_escape_from, next_escape = 0, 0
  return sums
end

return request_totals
