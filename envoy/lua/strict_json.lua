-- Refuses REST calls that do not match their contract: unknown fields, values of another type, bodies that are not JSON, and If-Match on
-- calls that cannot honour it. Envoy's transcoder silently drops unknown fields, accepts more than JSON, and names neither field nor
-- remedy. Only calls in RULES continue, so the transcoder reads nothing that was not checked here.
--
-- RULES, a table (see public_api.py), REMEDIES, texts by reason, MAX_WITHOUT_TOKEN, the most bytes of a body without a token, and ELSEWHERE
-- and JOBS, where other calls and those of jobs are, are put before this script. The services check gRPC's own encoding.

local field_kinds = require("field_kinds")
local json_body = require("json_body")
local json_tree = require("json_tree")
local nearest = require("nearest")
local quoted = require("quotation")
local rpc_status = require("rpc_status")

local BOM = "\239\187\191"

local function is_value_of(values, value)
  if value.kind == "number" then return value.value % 1 == 0 end
  for _, name in ipairs(values) do
    if name == value.text then return true end
  end
end

local unfit_object

local function no_such_field(name, fields)
  local near = nearest(name, fields)
  return "there is no such field" .. (near and "; did you mean " .. near .. "?" or "")
end

-- Returns the path of a wrong value and what is wrong with it; nothing if the value matches its rule.
local function unfit_value(value, rule, path)
  if rule.kind == "enum" then
    if is_value_of(rule.values, value) then return end
    return path, "must be one of " .. table.concat(rule.values, ", ")
  end
  local takes = field_kinds[rule.kind]
  if not takes[2](value) then
    return path, rule.most and ("must be a whole number from %d to %d"):format(rule.least, rule.most) or takes[1]
  end
  if rule.kind == "message" then return unfit_object(value, rule.of, path) end
end

local function unfit_field(value, rule, path)
  if value.kind == "null" then return end
  if not rule.list then return unfit_value(value, rule, path) end
  if value.kind ~= "array" then return path, "must be a list" end
  for index, item in ipairs(value.items) do
    local at, why = unfit_value(item, rule, path .. "[" .. (index - 1) .. "]")
    if at then return at, why end
  end
end

function unfit_object(object, message, path)
  local fields, seen = RULES.messages[message], {}
  for index, name in ipairs(object.names) do
    local rule, at = fields[name], path == "" and name or path .. "." .. name
    if not rule then return at, no_such_field(name, fields) end
    if seen[rule.name] then return at, "is given twice" end
    seen[rule.name] = true
    local inner, why = unfit_field(object.values[index], rule, at)
    if inner then return inner, why end
  end
end

local function decoded(text)
  return (text:gsub("%+", " "):gsub("%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

-- As unfit_object, for the parameters of a query; a dot leads into a message.
local function unfit_query(query, message)
  for pair in query:gmatch("[^&]+") do
    local name, text = pair:match("^([^=]*)=?(.*)$")
    name = decoded(name)
    local inner, rule = message, nil
    for part in name:gmatch("[^.]+") do
      rule = inner and RULES.messages[inner][part]
      if not rule then return name, inner and no_such_field(part, RULES.messages[inner]) or "there is no such field" end
      inner = rule.kind == "message" and rule.of or nil
    end
    if not rule then return name, "there is no such field" end -- a name without any part
    local at, why = unfit_value({ kind = "string", text = decoded(text) }, rule, name)
    if at then return at, why end
  end
end

-- `field` is the wrong part of the request; the body if it is nil.
local function refuse(request, status, message, field, why)
  if status == "404" then
    return rpc_status.refuse(request, status, { code = 12, reason = "NOT_IMPLEMENTED", message = message, metadata = {}, remedy = REMEDIES.NOT_IMPLEMENTED })
  end
  if field then
    field = quoted(field:sub(1, 200))
    message = field .. ": " .. why
  end
  field = field or "body"
  rpc_status.refuse(request, status, {
    code = 3,
    reason = "INVALID_FIELD",
    message = message,
    metadata = { fields = field },
    remedy = REMEDIES.INVALID_FIELD,
    violation = { field = field, description = why or message },
  })
end

local function binding_of(verb, path)
  for _, binding in ipairs(RULES.bindings) do
    if binding.verb == verb and path:find(binding.path) then
      return binding
    end
  end
end

-- Refuses a wrong body and returns true.
local function refused_body(request, binding, content_type)
  local most = request:headers():get("x-llamesh-claims") and math.huge or MAX_WITHOUT_TOKEN
  -- Before `body` buffers it. A body of unstated length is buffered up to the route's limit, which is the same for calls without a token.
  local length = tonumber(request:headers():get("content-length") or 0)
  local buffer = length <= most and request:body()
  length = buffer and buffer:length() or length
  if length > most then
    refuse(request, "413", ("The body of a call without a token is larger than %d bytes."):format(MAX_WITHOUT_TOKEN))
    return true
  end
  if length == 0 then return end
  local text = buffer:getBytes(0, length)
  if not json_body.is_named_by(content_type) then
    refuse(request, "415", json_body.NOT_NAMED)
    return true
  end
  if text:sub(1, 3) == BOM then -- some editors write it, and the transcoder cannot read it
    text = text:sub(4)
    request:headers():replace("content-length", tostring(buffer:setBytes(text)))
  end
  local readable, body = pcall(json_tree.parse, text)
  if not readable and type(body) == "table" then
    refuse(request, "400", "The body has " .. body.excess .. ".")
  elseif not readable then
    refuse(request, "400", "The body cannot be read as JSON.")
  elseif body.kind ~= "object" then
    refuse(request, "400", "The body must be a JSON object.")
  elseif binding.message == "" then
    if #body.names == 0 then return end
    refuse(request, "400", "This call takes no body.")
  else
    local at, why = unfit_object(body, binding.message, "")
    if not at then return end
    refuse(request, "400", nil, at, why)
  end
  return true
end

function envoy_on_request(request)
  local headers = request:headers()
  local verb = headers:get(":method")
  local content_type = headers:get("content-type") or ""
  if verb == "OPTIONS" or rpc_status.is_grpc(content_type) then return end
  local encoded = json_body.encoding_problem(headers:get("content-encoding"))
  if encoded then
    return refuse(request, "415", encoded)
  end
  local path, query = headers:get(":path"):match("^([^?]*)%??(.*)$")
  -- The transcoder ignores slashes at the end.
  path = path:gsub("/+$", "")
  local binding = binding_of(verb == "HEAD" and "GET" or verb, path)
  if not binding or (verb == "HEAD" and binding.streams) then
    local elsewhere = path:find("^/jobs") and JOBS or ELSEWHERE
    return refuse(request, "404", "There is no call " .. quoted((verb .. " " .. path):sub(1, 200)) .. "." .. elsewhere)
  end
  if verb == "HEAD" then -- sent on as GET; envoy_on_response removes the body
    verb = "GET"
    headers:replace(":method", verb)
    request:streamInfo():dynamicMetadata():set("llamesh", "head", true)
  end
  if headers:get("if-match") and not binding.etag then
    return refuse(request, "400", nil, "If-Match", "this call has no etag and cannot keep the condition: send it without")
  end
  local at, why = unfit_query(query, binding.query)
  if at then
    return refuse(request, "400", nil, at, why)
  end
  -- Of a GET too: the transcoder would buffer it.
  refused_body(request, binding, content_type)
end

function envoy_on_response(response)
  local own = response:streamInfo():dynamicMetadata():get("llamesh")
  if own and own.head then
    local body = response:body()
    if body then
      local length = tostring(body:length())
      body:setBytes("")
      response:headers():replace("content-length", length)
    end
  end
end
