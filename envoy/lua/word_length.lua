-- Finds the longest run of characters of one class in a text. Most tokenizers treat it as one word, and their time grows with the square of
-- its length.
--
-- Only a few positions of the text are examined: a run longer than the limit covers the whole distance from one of them to the next.

local json_text = require("json_text")
local find, sub, gsub = string.find, string.sub, string.gsub
local max, floor, ceil = math.max, math.floor, math.ceil

local word_length = {}

-- `written`: the characters of a stretch as they may stand in a body, escapes included. `read`: the decoded characters.
local CLASSES = {
  { written = "[A-Za-z\128-\255\\0-9]", read = "[A-Za-z\128-\255]" },
  { written = "[0-9\\ua-fA-F]", read = "%d" },
  { written = "[ \t\r\n\\nrtbfu0-9a-fA-F]", read = "%s" },
  { written = "[^%sg-tv-zG-Z\128-\255]", read = "[^A-Za-z0-9%s\128-\255]" },
}

-- Calls found(first, last) for each stretch of at least `least` characters of `set`. Such a stretch covers the whole distance between two
-- examined positions.
local function stretches(written, set, least, found)
  local step = max(1, floor(least / 2))
  local run, one, at = "^" .. set .. "+", "^" .. set, 1
  while at <= #written do
    local _, last = find(written, run, at)
    if last and last - at + 1 >= step then
      local first = at
      while first > 1 and find(written, one, first - 1) do
        first = first - 1
      end
      if last - first + 1 >= least then
        found(first, last)
      end
      at = at + step * ceil((last + 1 - at) / step)
    else
      at = at + step
    end
  end
end

-- Punctuation of Chinese and Japanese texts, which have no spaces.
local function broken_up(text)
  text = gsub(text, "\227\128[\128-\159]", " ")
  return (gsub(text, "\239\188[\129\136\137\140\154\155\159]", " "))
end

-- Ends the scan if a stretch of the text, as it was sent, exceeds the limit `name`.
function word_length.check(written, name, limits)
  local least = limits[name] + 1
  for _, class in ipairs(CLASSES) do
    stretches(written, class.written, least, function(first, last)
      local text = broken_up(json_text.unescaped(sub(written, first, last)))
      stretches(text, class.read, least, function(from, to)
        return json_text.exceeded(name, to - from + 1)
      end)
      -- A stretch of such punctuation, which has three bytes each.
      stretches(text, " ", ceil(least / 3), function(from, to)
        return json_text.exceeded(name, 3 * (to - from + 1))
      end)
    end)
  end
end

return word_length
