-- A reader for JSON within limits. A value becomes {kind, ...}: an object has `names` in order and `values`, an array `items`, a string
-- `text`, a number `value`.

local json_tree = {}

local MAX_DEPTH = 32
-- Maximum number of values and names of a body, and of escapes in its strings: each takes memory, and other requests of this worker wait.
local MAX_VALUES = 10000
local MAX_ESCAPES = 100000
local ESCAPES = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }
local WORDS = { ["true"] = "bool", ["false"] = "bool", ["null"] = "null" }
local read
local values, escapes

local function count_value()
  values = values + 1
  if values > MAX_VALUES then error({ excess = ("more than %d values and names"):format(MAX_VALUES) }) end
end

local function count_escape()
  escapes = escapes + 1
  if escapes > MAX_ESCAPES then error({ excess = ("more than %d escapes in strings"):format(MAX_ESCAPES) }) end
end

local function read_string(text, at)
  local parts, from = {}, at + 1
  while true do
    local stop = text:find('[%c"\\]', from)
    if not stop then error("unclosed string") end
    parts[#parts + 1] = text:sub(from, stop - 1)
    local mark = text:byte(stop)
    if mark == 34 then
      return table.concat(parts), stop + 1
    end
    if mark ~= 92 then
      if mark ~= 127 then error("control character") end
      parts[#parts + 1] = "\127"
      from = stop + 1
    else
      count_escape()
      local letter = text:sub(stop + 1, stop + 1)
      if letter == "u" then
        local digits = text:match("^%x%x%x%x", stop + 2)
        if not digits then error("bad escape") end
        local code = tonumber(digits, 16)
        parts[#parts + 1] = code < 128 and string.char(code) or "?"
        from = stop + 6
      else
        parts[#parts + 1] = ESCAPES[letter] or error("bad escape")
        from = stop + 2
      end
    end
  end
end

local function skip(text, at)
  return text:find("[^ \t\r\n]", at) or error("unexpected end")
end

local function read_object(text, at, depth)
  local object = { kind = "object", names = {}, values = {} }
  at = skip(text, at + 1)
  if text:byte(at) == 125 then return object, at + 1 end
  while true do
    if text:byte(at) ~= 34 then error("name expected") end
    count_value()
    local name
    name, at = read_string(text, at)
    at = skip(text, at)
    if text:byte(at) ~= 58 then error("colon expected") end
    object.names[#object.names + 1] = name
    object.values[#object.names], at = read(text, skip(text, at + 1), depth)
    at = skip(text, at)
    local mark = text:byte(at)
    if mark == 125 then return object, at + 1 end
    if mark ~= 44 then error("comma expected") end
    at = skip(text, at + 1)
  end
end

local function read_array(text, at, depth)
  local array = { kind = "array", items = {} }
  at = skip(text, at + 1)
  if text:byte(at) == 93 then return array, at + 1 end
  while true do
    array.items[#array.items + 1], at = read(text, at, depth)
    at = skip(text, at)
    local mark = text:byte(at)
    if mark == 93 then return array, at + 1 end
    if mark ~= 44 then error("comma expected") end
    at = skip(text, at + 1)
  end
end

local function read_word(text, at)
  local _, last, word = text:find("^([%w.+-]+)", at)
  if not word then error("value expected") end
  if WORDS[word] then return { kind = WORDS[word] }, last + 1 end
  local whole, rest = word:match("^-?(%d+)(.*)$")
  if not whole or (#whole > 1 and whole:byte() == 48) then error("value expected") end
  local exponent = rest:gsub("^%.%d+", "")
  if exponent ~= "" and not exponent:find("^[eE][+-]?%d+$") then error("value expected") end
  return { kind = "number", value = tonumber(word) }, last + 1
end

function read(text, at, depth)
  if depth > MAX_DEPTH then error({ excess = ("values more than %d deep"):format(MAX_DEPTH) }) end
  count_value()
  local mark = text:byte(at)
  if mark == 34 then
    local inner
    inner, at = read_string(text, at)
    return { kind = "string", text = inner }, at
  end
  if mark == 123 then return read_object(text, at, depth + 1) end
  if mark == 91 then return read_array(text, at, depth + 1) end
  return read_word(text, at)
end

-- Returns the value of a whole text. Raises {excess} if the text exceeds a limit, and a message if it is not JSON.
function json_tree.parse(text)
  values, escapes = 0, 0
  local value, at = read(text, skip(text, 1), 0)
  if text:find("[^ \t\r\n]", at) then error("more than one value") end
  return value
end

return json_tree
