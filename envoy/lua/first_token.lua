-- Finds the first token in a stream of any API.
--
-- llama.cpp sends the head of a stream when it has accepted the request, which may be minutes before the first token. Until then it sends a
-- comment (`:`) every 30 s and, if the client sends `return_progress`, an event for each batch of the prompt.

local find, sub = string.find, string.sub

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

-- Returns a function that takes the chunks of a stream in order and returns whether the first token has arrived. It is not called again
-- after it has returned true.
function first_token.finder()
  local rest = ""
  return function(bytes)
    rest = rest .. bytes
    local start = 1
    local last = find(rest, "\n\n", start, true)
    while last do
      if has_token(sub(rest, start, last)) then
        return true
      end
      start = last + 2
      last = find(rest, "\n\n", start, true)
    end
    rest = sub(rest, start)
    return #rest > MAX_EVENT
  end
end

return first_token
