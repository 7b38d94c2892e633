-- Which bodies the filters read: JSON without an encoding. Any other body is refused with 415 before it is read.

local quoted = require("quotation")

local json_body = {}

-- One media type, with parameters or without. Two headers come as one with a comma.
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
