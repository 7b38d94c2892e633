-- Decides which bodies the filters read: JSON without an encoding. All other bodies are refused with 415 before they are read.

local quoted = require("quotation")

local json_body = {}

-- Matches one media type with or without parameters. Envoy joins two headers with a comma.
function json_body.is_named_by(content_type)
  if content_type == "application/json" then return true end
  content_type = content_type:lower()
  return not content_type:find(",", 1, true)
    and (content_type:find("^application/json%s*$") or content_type:find("^application/json%s*;")) ~= nil
end

json_body.NOT_NAMED = "The body must be JSON: send content-type: application/json."

-- Returns why a body with this Content-Encoding (or nil) is not read; nil if it is read.
function json_body.encoding_problem(encoding)
  if encoding and encoding:lower() ~= "identity" then
    return "A body with Content-Encoding " .. quoted(encoding:sub(1, 40)) .. " is not taken: send it without an encoding."
  end
end

return json_body
