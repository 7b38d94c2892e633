-- Reads the keys of a JSON object in one pass, without building anything: a body of 100 KB costs a tenth of what a parser takes.
--
-- It is here to find keys, not to judge. In valid JSON it sees every key at every depth, however it is written; what is plainly broken it says to be so, and what
-- is broken more finely the engine's own parser refuses, so a body that the two read differently is never answered. Nor would the model's name be a way around
-- anything: the engine ignores it, and the token's scope is held against the name that was read here. The last of duplicate keys counts, as for the engine.

local find, byte, sub, gsub, char = string.find, string.byte, string.sub, string.gsub, string.char
local QUOTE, BACKSLASH, COLON, BRACE, BRACKET = 34, 92, 58, 123, 91

local json_keys = {}

-- Deeper bodies are refused: the engine turns schemas into grammars by recursion.
json_keys.MAX_DEPTH = 256
-- Longer keys are not looked at, in bytes as sent. So a watched key has 20 characters at most: each may be written as \uXXXX.
local MAX_KEY = 128

-- Where the string ends whose first character stands at `at`: its closing quote, which has an even number of backslashes before it.
local function closing_quote(text, at)
  local quote = find(text, '"', at, true)
  while quote do
    local before = quote - 1
    while byte(text, before) == BACKSLASH do
      before = before - 1
    end
    if (quote - before) % 2 == 1 then
      return quote
    end
    quote = find(text, '"', quote + 1, true)
  end
end

local ESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

-- What lies between the quotes of a string, read. A character beyond ASCII that is written as an escape becomes the byte 255, which is in no text.
local function unescaped(text)
  if not find(text, "\\", 1, true) then
    return text
  end
  return (gsub(text, "\\(.)(%x?%x?%x?%x?)", function(letter, digits)
    if letter ~= "u" then
      return (ESCAPES[letter] or letter) .. digits
    end
    local code = tonumber(digits, 16)
    return code and code < 128 and char(code) or "\255"
  end))
end

-- The string that is the value at `at`, and nil where it is none. `most`: how many of its bytes as sent are wanted.
function json_keys.string_at(text, at, most)
  if byte(text, at) ~= QUOTE then
    return nil
  end
  local quote = closing_quote(text, at + 1)
  return quote and unescaped(sub(text, at + 1, math.min(quote - 1, at + most)))
end

-- Calls found(name, depth, at) for each key that is one of `watched`: 1 is the depth of the object itself, `at` where the value begins.
-- False where the text is not an object, is cut off, goes on behind its end, or is nested too deep.
function json_keys.each(text, watched, found)
  local at = find(text, "[^ \t\r\n]")
  if not at or byte(text, at) ~= BRACE then
    return false
  end
  local depth = 1
  at = at + 1
  while true do
    at = find(text, '["{}%[%]]', at)
    if not at then
      return false
    end
    local mark = byte(text, at)
    if mark == QUOTE then
      local quote = closing_quote(text, at + 1)
      if not quote then
        return false
      end
      local after = find(text, "[^ \t\r\n]", quote + 1)
      if not after then
        return false
      end
      if byte(text, after) == COLON then
        if quote - at <= MAX_KEY then
          local name = unescaped(sub(text, at + 1, quote - 1))
          if watched[name] then
            local value = find(text, "[^ \t\r\n]", after + 1)
            if not value then
              return false
            end
            found(name, depth, value)
          end
        end
        after = after + 1
      end
      at = after
    elseif mark == BRACE or mark == BRACKET then
      depth = depth + 1
      if depth > json_keys.MAX_DEPTH then
        return false
      end
      at = at + 1
    else
      depth = depth - 1
      if depth == 0 then
        return not find(text, "[^ \t\r\n]", at + 1)
      end
      at = at + 1
    end
  end
end

return json_keys
