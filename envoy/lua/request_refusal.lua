-- Writes the message of a refused body: the field, the property of a schema, the limit, and the documentation of the limits.
-- Quotations from the body are bounded.

local sub = string.sub

local request_refusal = {}

-- Maximum number of bytes in a message of a name, of the path to a field, and of the path to a property.
local MAX_NAME, MAX_WAY, MAX_PROPERTY = 64, 200, 120
local ABOUT_CONTEXT = " Shorten the prompt, or serve the model with a larger --ctx-size."
local ABOUT_LIMITS = " All limits, and how the operator changes them: docs/reference/limits.md."

-- Returns the path to the refused value, such as messages[3].content.
local function place(trail, level)
  local way = {}
  for step = 1, level do
    local name = trail[step]
    if type(name) == "number" then
      way[#way + 1] = "[" .. name .. "]"
    elseif name then
      way[#way + 1] = (step > 1 and "." or "") .. sub(name, 1, MAX_NAME)
    end
  end
  return sub(table.concat(way), 1, MAX_WAY)
end

-- Returns the property of a schema that exceeded the limit.
local function inside(why)
  return why.property and why.property ~= "" and " (property '" .. sub(why.property, 1, MAX_PROPERTY) .. "')" or ""
end

-- Gives a refusal its message and its param. `trail`: the names and numbers that lead to the value at fault, `level` of them.
-- `from_context`: whether the longest prompt follows from the largest context of any server.
function request_refusal.complete(why, trail, level, limits, from_context)
  local at = place(trail, level)
  local field = at == "" and "The body" or "The field " .. at
  if why.code == "limit_exceeded" and why.name == "prompt.bytes" then
    -- llama.cpp's message for a prompt that is too long. Agents and proxies know it and shorten the conversation.
    why.kind, why.code = "exceed_context_size_error", "context_length_exceeded"
    why.message = string.format("%s exceeds %sthe limit prompt.bytes: at most %s, sent %s%s.%s%s",
      field, from_context and "the available context size, by " or "", limits[why.name], why.more and "at least " or "", why.sent, ABOUT_CONTEXT,
      from_context and "" or ABOUT_LIMITS)
  elseif why.code == "limit_exceeded" then
    why.message = string.format("%s exceeds the limit %s: at most %s, sent %s%s%s.%s",
      field, why.name, limits[why.name], why.more and "at least " or "", why.sent, inside(why), ABOUT_LIMITS)
  elseif why.code == "invalid_json" then
    why.message = "The body is not a JSON object."
  else
    why.message = "The field " .. at .. inside(why) .. " " .. why.message
  end
  why.param = why.code ~= "invalid_json" and at ~= "" and at or nil
end

return request_refusal
