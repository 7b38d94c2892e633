-- Converts an error of llama.cpp to the format of the called API, with status 400 if the request caused it (envoy/replies/engine.yaml).
-- A body that does not have the form of llama.cpp's errors, such as one of the mesh's own, is not changed.

local find, match, sub, byte = string.find, string.match, string.sub, string.byte
local QUOTE, BACKSLASH = 34, 92
local known = require("engine_errors_table")

local engine_errors = {}

-- Maximum bytes of an error's body: llama.cpp quotes the request. A longer one is not changed.
engine_errors.LONGEST = 262144

-- Maximum bytes of llama.cpp's message that a client gets: it may quote all tools of a request.
local MAX_MESSAGE = 2000

-- Returns the position of the end of the text that begins at `at`, or nil.
local function end_of_text(body, at)
  repeat
    at = find(body, '["\\]', at)
    if not at then return nil end
    if byte(body, at) == QUOTE then return at - 1 end
    at = at + 2
  until false
end

-- Returns the beginning of a JSON text, cut neither inside an escape nor inside a character.
local function beginning(text)
  if #text <= MAX_MESSAGE then return text end
  local cut = MAX_MESSAGE
  while cut > 0 and byte(text, cut + 1) >= 128 and byte(text, cut + 1) < 192 do cut = cut - 1 end
  local at = 1
  while at <= cut do
    local length = byte(text, at) ~= BACKSLASH and 1 or sub(text, at + 1, at + 1) == "u" and 6 or 2
    if at + length - 1 > cut then return sub(text, 1, at - 1) .. "..." end
    at = at + length
  end
  return sub(text, 1, cut) .. "..."
end

local function entry_of(message)
  for _, entry in ipairs(known.entries) do
    if sub(message, 1, #entry.begins) == entry.begins then
      return entry
    end
  end
end

local function words(message, entry)
  if entry.message then return entry.message end
  local ending = entry.instead_of and find(message, entry.instead_of, 1, true)
  return ending and sub(message, 1, ending - 1) .. entry.ending or beginning(message)
end

-- Returns the status and body that replace llama.cpp's, or nil to keep llama.cpp's. `anthropic`: whether Anthropic's API was called.
function engine_errors.reshaped(status, body, anthropic)
  local start = match(body, '^{"error":{"code":%d+,"message":"()')
  local stop = start and end_of_text(body, start)
  local kind, more = match(body, '^","type":"([%w_]+)"(.*)}}%s*$', stop and stop + 1)
  if not kind then
    return nil
  end
  local message = sub(body, start, stop)
  local entry = entry_of(message)
  if entry then
    message = words(message, entry)
    kind = status >= 500 and "invalid_request_error" or kind
    status = 400
  elseif not anthropic then
    return nil
  end
  if anthropic then
    local type_of = known.types[status] or (status < 500 and "invalid_request_error" or "api_error")
    return status, ('{"type":"error","error":{"type":"%s","message":"%s%s"}}'):format(type_of, entry and entry.anthropic or "", message)
  end
  local param = entry.param and '"' .. entry.param .. '"' or "null"
  return status, ('{"error":{"message":"%s","type":"%s","param":%s,"code":"%s"%s}}'):format(message, kind, param, entry.code, more)
end

-- Converts an error to the format of the API, if its body is as short as its content-length says.
function engine_errors.reshape(response, status, length)
  if not length or length == 0 or length > engine_errors.LONGEST then
    return
  end
  local request = response:streamInfo():dynamicMetadata():get("llamesh")
  local anthropic = request and request.anthropic
  local buffer = response:body() -- waits for it
  if not buffer then
    return
  end
  local changed, body = engine_errors.reshaped(status, buffer:getBytes(0, buffer:length()), anthropic)
  if changed then
    response:headers():replace("content-length", buffer:setBytes(body))
    response:headers():replace(":status", tostring(changed))
  end
end

return engine_errors
