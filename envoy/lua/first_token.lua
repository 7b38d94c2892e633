-- Finds the first token in a stream of any API, and what comes without a token.
--
-- llama.cpp sends the head of a stream when it has accepted the request, which may be minutes before the first token. Until then it sends a
-- comment (`:`) every 30 s and, if the client sends `return_progress`, an event for each batch of the prompt.

local find, sub, byte = string.find, string.sub, string.byte
local COLON = 58

local first_token = {}

-- Marks of events without a token. A quote inside a text of a model is escaped, so no such text contains a mark.
local WITHOUT_TOKEN = {
  '"prompt_progress":{', '"type":"response.created"', '"type":"response.in_progress"', '"type":"message_start"',
  'data: {"error":', '"type":"error"',
}
-- Maximum number of stored bytes of an unfinished event. Events without a token are shorter.
local MAX_EVENT = 65536

local function has_token(event)
  if not find(event, "data: {", 1, true) then
    return false
  end
  for _, mark in ipairs(WITHOUT_TOKEN) do
    if find(event, mark, 1, true) then
      return false
    end
  end
  return true
end

-- Returns whether a chunk is a comment, which llama.cpp also sends between two tokens.
local function is_comment(bytes)
  return byte(bytes, 1) == COLON and not find(bytes, "\ndata:", 1, true)
end

-- Returns a function that takes the chunks of a stream in order. It returns whether the first token has arrived, and the bytes of the
-- events that this chunk completes if none of them has a token; after the first token only comments are seen to have none.
function first_token.finder()
  local rest, found = "", false
  return function(bytes)
    if found then
      return true, is_comment(bytes) and #bytes or 0
    end
    rest = rest .. bytes
    local start, without = 1, 0
    local last = find(rest, "\n\n", start, true)
    while last and not found do
      found = has_token(sub(rest, start, last))
      if not found then
        without = without + last + 2 - start
        start = last + 2
        last = find(rest, "\n\n", start, true)
      end
    end
    rest = sub(rest, start)
    found = found or #rest > MAX_EVENT
    -- Events in front of the first token are in the same chunk as it.
    return found, found and 0 or without
  end
end

return first_token
