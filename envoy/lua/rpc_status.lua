-- Answers with a google.rpc.Status in the form that services use (llamesh/kit/errors.py): JSON over REST, a header over gRPC.
--
-- An error has `code`, `message`, `reason`, `remedy`, `metadata` (values by name) and, over REST only, `violation` (a field and its
-- description).

local TYPES = "type.googleapis.com/google.rpc."
local DOMAIN = "llamesh"

local rpc_status = {}

-- Returns whether a request is gRPC by the rule of Envoy's transcoder: this media type in lower case, alone or with a plus. gRPC-Web has
-- already been converted to gRPC.
function rpc_status.is_grpc(content_type)
  return content_type == "application/grpc" or content_type:sub(1, 17) == "application/grpc+"
end

local function json(text)
  return '"' .. text:gsub('["\\]', "\\%0") .. '"'
end

local function written(error)
  local metadata = {}
  for name, value in pairs(error.metadata) do
    metadata[#metadata + 1] = json(name) .. ":" .. json(value)
  end
  local details = {
    ('{"@type":"%sErrorInfo","reason":"%s","domain":"%s","metadata":{%s}}'):format(TYPES, error.reason, DOMAIN, table.concat(metadata, ",")),
    ('{"@type":"%sLocalizedMessage","locale":"en","message":%s}'):format(TYPES, json(error.remedy)),
  }
  if error.violation then
    details[3] = ('{"@type":"%sBadRequest","field_violations":[{"field":%s,"description":%s}]}'):format(
      TYPES, json(error.violation.field), json(error.violation.description)
    )
  end
  return ('{"code":%d,"message":%s,"details":[%s]}'):format(error.code, json(error.message), table.concat(details, ","))
end

-- A field of bytes in the encoding of Protocol Buffers.
local function field(number, bytes)
  local length, left = "", #bytes
  while left > 127 do
    length = length .. string.char(128 + left % 128)
    left = math.floor(left / 128)
  end
  return string.char(8 * number + 2) .. length .. string.char(left) .. bytes
end

local function detail(name, bytes)
  return field(3, field(1, TYPES .. name) .. field(2, bytes))
end

local function encoded(error)
  local info = field(1, error.reason) .. field(2, DOMAIN)
  for name, value in pairs(error.metadata) do
    info = info .. field(3, field(1, name) .. field(2, value))
  end
  return string.char(8, error.code) .. field(2, error.message) .. detail("ErrorInfo", info)
    .. detail("LocalizedMessage", field(1, "en") .. field(2, error.remedy))
end

-- Answers with `error` in the form of the call. `status` is the HTTP status, from which Envoy derives the gRPC status.
function rpc_status.refuse(request, status, error)
  request:streamInfo():dynamicMetadata():set("llamesh", "refused", true)
  if not rpc_status.is_grpc(request:headers():get("content-type") or "") then
    return request:respond({ [":status"] = status, ["content-type"] = "application/json" }, written(error))
  end
  -- Envoy takes the message from the body for gRPC; gRPC-Web needs it in the header.
  local details = request:base64Escape(encoded(error)):gsub("=+$", "")
  request:respond({ [":status"] = status, ["grpc-message"] = error.message, ["grpc-status-details-bin"] = details }, error.message)
end

return rpc_status
