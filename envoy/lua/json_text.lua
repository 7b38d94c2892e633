-- Scans the text of one JSON body and counts it against the limits of the whole body. The first limit that is exceeded ends the scan: so
-- the time is linear in the bytes that were read, and a body with a million keys costs no more than one with the allowed number.
--
-- It finds values and does not validate them: the engine's own parser refuses subtle errors.
-- One body is read at a time (`open`): Envoy runs a worker's script without interruption until the script waits, and this module never
-- waits.

local find, byte, sub, gsub, char = string.find, string.byte, string.sub, string.gsub, string.char
local floor = math.floor
local QUOTE, BACKSLASH, COLON, COMMA, BRACE, BRACKET, CLOSING_BRACE, CLOSING_BRACKET = 34, 92, 58, 44, 123, 91, 125, 93

local json_text = {}

local text, limits = "", {}
local depth, keys, values, strings, escaped = 0, 0, 0, 0, 0
local of_object = {} -- Keys read so far of the object at each depth.

-- Starts another body. `most` has the number of each limit by its name.
function json_text.open(body, most)
  text, limits = body, most
  depth, keys, values, strings, escaped = 0, 0, 0, 0, 0
end

-- Returns the counts so far. `count_from` restores them, for text that is read again.
function json_text.counted()
  return { depth, keys, values, strings, escaped }
end

function json_text.count_from(before)
  depth, keys, values, strings, escaped = before[1], before[2], before[3], before[4], before[5]
end

function json_text.broken()
  error({ code = "invalid_json" }, 0)
end

-- Ends the scan: the amount `sent` exceeds the limit `name`. `more`: counting stopped at `sent`, so the amount may be larger.
function json_text.exceeded(name, sent, more)
  error({ code = "limit_exceeded", name = name, sent = sent, more = more }, 0)
end

local broken, exceeded = json_text.broken, json_text.exceeded

local ESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

-- Returns the UTF-8 bytes for the code of a \u escape. Half of a surrogate pair becomes three bytes that no valid text contains, until
-- `pair` finds the other half.
local function utf8(code)
  if code < 128 then
    return char(code)
  elseif code < 2048 then
    return char(192 + floor(code / 64), 128 + code % 64)
  end
  return char(224 + floor(code / 4096), 128 + floor(code / 64) % 64, 128 + code % 64)
end

local function pair(high, next_to_high, low, next_to_low)
  local code = 65536 + ((byte(high) - 160) * 64 + byte(next_to_high) - 128) * 1024 + (byte(low) - 176) * 64 + byte(next_to_low) - 128
  return char(240 + floor(code / 262144), 128 + floor(code / 4096) % 64, 128 + floor(code / 64) % 64, 128 + code % 64)
end

-- Returns the text of a string without its quotes, escapes decoded. Two notations of one name must give the same bytes.
function json_text.unescaped(raw)
  if not find(raw, "\\", 1, true) then
    return raw
  end
  local written = gsub(raw, "\\(.)(%x?%x?%x?%x?)", function(letter, digits)
    if letter ~= "u" then
      return (ESCAPES[letter] or letter) .. digits
    end
    local code = tonumber(digits, 16)
    return code and utf8(code) or "?"
  end)
  if find(written, "\237[\160-\175]") then
    written = gsub(written, "\237([\160-\175])([\128-\191])\237([\176-\191])([\128-\191])", pair)
  end
  return written
end

-- Returns the first position at or after `at` that is not white space.
function json_text.space(at)
  local mark = byte(text, at)
  if mark and mark > 32 then
    return at
  end
  local stop = find(text, "[^ \t\r\n]", at)
  if not stop then
    return broken()
  end
  if stop - at > limits["body.gap_bytes"] then
    return exceeded("body.gap_bytes", stop - at)
  end
  return stop
end

-- Returns the position of the closing quote of the string whose first character is at `at`. An even number of backslashes stands before it.
local function closing_quote(at)
  local quote = find(text, '"', at, true)
  while quote do
    local before = quote - 1
    if byte(text, before) ~= BACKSLASH then
      return quote
    end
    repeat
      before = before - 1
    until byte(text, before) ~= BACKSLASH
    local backslashes = quote - 1 - before
    if backslashes % 2 == 0 then
      return quote
    end
    escaped = escaped + backslashes
    if escaped > limits["body.escaped_quotes"] then
      return exceeded("body.escaped_quotes", escaped, true)
    end
    quote = find(text, '"', quote + 1, true)
  end
  return broken()
end

-- Returns the closing quote of the string value whose opening quote is at `at`.
function json_text.string(at)
  strings = strings + 1
  if strings > limits["body.strings"] then
    return exceeded("body.strings", strings, true)
  end
  return closing_quote(at + 1)
end

-- Counts one key with this number of bytes.
local function one_more_key(size)
  keys = keys + 1
  local here = of_object[depth] + 1
  of_object[depth] = here
  if keys > limits["body.keys"] then
    return exceeded("body.keys", keys, true)
  elseif here > limits["body.object_keys"] then
    return exceeded("body.object_keys", here, true)
  elseif size > limits["body.key_bytes"] then
    return exceeded("body.key_bytes", size)
  end
end

-- Returns the closing quote of the key whose opening quote is at `at`, and the beginning of its value.
function json_text.key(at)
  if byte(text, at) ~= QUOTE then
    return broken()
  end
  local quote = closing_quote(at + 1)
  one_more_key(quote - at - 1)
  local colon = json_text.space(quote + 1)
  if byte(text, colon) ~= COLON then
    return broken()
  end
  return quote, json_text.space(colon + 1)
end

-- Counts one value. A container counts when it opens; its members count by the commas between them.
local function one_more()
  values = values + 1
  if values > limits["body.values"] then
    return exceeded("body.values", values, true)
  end
end

-- Enters the object or list that opens at `at`. Returns the beginning of its first member; if it is empty, nil and its end.
function json_text.enter(at)
  one_more()
  depth = depth + 1
  if depth > limits["body.depth"] then
    return exceeded("body.depth", depth, true)
  end
  of_object[depth] = 0
  local closing = byte(text, at) == BRACE and CLOSING_BRACE or CLOSING_BRACKET
  at = json_text.space(at + 1)
  if byte(text, at) == closing then
    depth = depth - 1
    return nil, at + 1
  end
  return at
end

-- Continues after a member that ended before `at`. Returns the beginning of the next member; at the end of the container, nil and its end.
function json_text.next(at, closing)
  at = json_text.space(at)
  local mark = byte(text, at)
  if mark == COMMA then
    one_more()
    return json_text.space(at + 1)
  end
  if mark ~= closing then
    return broken()
  end
  depth = depth - 1
  return nil, at + 1
end

-- Returns the number, true, false or null at `at` as written, and its end.
function json_text.word(at)
  local stop = find(text, "[^%w.+-]", at)
  if not stop or stop == at then
    return broken()
  end
  if stop - at > limits["body.gap_bytes"] then
    return exceeded("body.gap_bytes", stop - at)
  end
  return sub(text, at, stop - 1), stop
end

-- Returns the end of the value of any kind that begins at `at`.
function json_text.skip(at)
  local mark = byte(text, at)
  if mark == QUOTE then
    return json_text.string(at) + 1
  elseif mark ~= BRACE and mark ~= BRACKET then
    local _, stop = json_text.word(at)
    return stop
  end
  local outside, most_gap = depth, limits["body.gap_bytes"]
  while true do
    local stop = find(text, '["{}%[%],]', at)
    if not stop then
      return broken()
    end
    if stop - at > most_gap then
      return exceeded("body.gap_bytes", stop - at)
    end
    mark = byte(text, stop)
    at = stop + 1
    if mark == QUOTE then
      local quote = closing_quote(at)
      at = json_text.space(quote + 1)
      if byte(text, at) == COLON then
        one_more_key(quote - stop - 1)
        at = at + 1
      else
        strings = strings + 1
        if strings > limits["body.strings"] then
          return exceeded("body.strings", strings, true)
        end
      end
    elseif mark == COMMA then
      one_more()
    elseif mark == BRACE or mark == BRACKET then
      one_more()
      depth = depth + 1
      if depth > limits["body.depth"] then
        return exceeded("body.depth", depth, true)
      end
      of_object[depth] = 0
    else
      depth = depth - 1
      if depth == outside then
        return at
      end
    end
  end
end

return json_text
