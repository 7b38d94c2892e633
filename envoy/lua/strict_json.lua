-- Refuses JSON bodies with fields that the contract does not have. Envoy's transcoder drops them in silence, and a misspelt field would be a setting that never took effect.
-- Also refuses bodies that are not said to be JSON, which the transcoder would read all the same, and If-Match where the call cannot keep it.
--
-- RULES, a JSON text, is put before this script: {"bindings": [{verb, path, message, etag}], "messages": {name: {field: true | message name}}}.
-- Only REST calls are looked at; gRPC's own encoding is checked by the services.

local MAX_DEPTH = 32

-- A reader for JSON that is here to find names; finer mistakes in values are the transcoder's to refuse. Objects become tables
-- with their names, arrays tables with numbers; all else becomes true, strings themselves.
local ESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }
local read

local function read_string(text, at)
  local parts, from = {}, at + 1
  while true do
    local stop = text:find('["\\]', from)
    if not stop then error("unclosed string") end
    parts[#parts + 1] = text:sub(from, stop - 1)
    if text:byte(stop) == 34 then
      return table.concat(parts), stop + 1
    end
    local letter = text:sub(stop + 1, stop + 1)
    if letter == "u" then
      local code = tonumber(text:sub(stop + 2, stop + 5), 16)
      if not code then error("bad escape") end
      parts[#parts + 1] = code < 128 and string.char(code) or "?"
      from = stop + 6
    else
      parts[#parts + 1] = ESCAPES[letter] or letter
      from = stop + 2
    end
  end
end

local function skip(text, at)
  return text:find("[^ \t\r\n]", at) or error("unexpected end")
end

local function read_object(text, at, depth)
  local object = {}
  at = skip(text, at + 1)
  if text:byte(at) == 125 then return object, at + 1 end
  while true do
    if text:byte(at) ~= 34 then error("name expected") end
    local name
    name, at = read_string(text, at)
    at = skip(text, at)
    if text:byte(at) ~= 58 then error("colon expected") end
    local value
    value, at = read(text, skip(text, at + 1), depth)
    object[name] = value
    at = skip(text, at)
    local mark = text:byte(at)
    if mark == 125 then return object, at + 1 end
    if mark ~= 44 then error("comma expected") end
    at = skip(text, at + 1)
  end
end

local function read_array(text, at, depth)
  local array = {}
  at = skip(text, at + 1)
  if text:byte(at) == 93 then return array, at + 1 end
  while true do
    array[#array + 1], at = read(text, at, depth)
    at = skip(text, at)
    local mark = text:byte(at)
    if mark == 93 then return array, at + 1 end
    if mark ~= 44 then error("comma expected") end
    at = skip(text, at + 1)
  end
end

function read(text, at, depth)
  if depth > MAX_DEPTH then error("too deep") end
  local mark = text:byte(at)
  if mark == 34 then return read_string(text, at) end
  if mark == 123 then return read_object(text, at, depth + 1) end
  if mark == 91 then return read_array(text, at, depth + 1) end
  local _, last = text:find("^[%w.+-]+", at)
  if not last then error("value expected") end
  return true, last + 1
end

local function parse(text)
  return read(text, skip(text, 1), 0)
end

local rules = parse(RULES)

local function unknown_field(value, message, path)
  if type(value) ~= "table" then return nil end
  if #value > 0 then
    for index, item in ipairs(value) do
      local found = unknown_field(item, message, path .. "[" .. (index - 1) .. "]")
      if found then return found end
    end
    return nil
  end
  local fields = rules.messages[message]
  for name, inner in pairs(value) do
    local at = path == "" and name or path .. "." .. name
    local kind = fields[name]
    if kind == nil then return at end
    if kind ~= true then
      local found = unknown_field(inner, kind, at)
      if found then return found end
    end
  end
end

local function violation_of(field, description)
  return string.format(
    ',{"@type":"type.googleapis.com/google.rpc.BadRequest","field_violations":[{"field":"%s","description":"%s"}]}', field, description
  )
end

local function refuse(request, status, code, message, details)
  request:streamInfo():dynamicMetadata():set("llamesh", "refused", true)
  request:respond(
    { [":status"] = status, ["content-type"] = "application/json" },
    string.format(
      '{"code":%d,"message":"%s","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"INVALID_FIELD","domain":"llamesh","metadata":{}}%s]}',
      code, message, details or ""
    )
  )
end

local function binding_of(verb, path)
  for _, binding in ipairs(rules.bindings) do
    if binding.verb == verb and path:find(binding.path) then
      return binding
    end
  end
end

function envoy_on_request(request)
  local headers = request:headers()
  local verb = headers:get(":method")
  local path = headers:get(":path"):gsub("%?.*", "")
  if headers:get("if-match") then
    local binding = binding_of(verb, path)
    if binding and not binding.etag then
      return refuse(request, "400", 3, "This call cannot keep the condition If-Match: send it without.",
        violation_of("If-Match", "this call has no etag"))
    end
  end
  if verb == "GET" or verb == "OPTIONS" or verb == "HEAD" then return end
  local content_type = (headers:get("content-type") or ""):lower()
  if content_type:find("^application/grpc") then return end
  local binding = binding_of(verb, path)
  if not binding then return end -- no such call; the transcoder says so

  local buffer = request:body()
  local text = buffer and buffer:getBytes(0, buffer:length()) or ""
  if text == "" then return end
  if not content_type:find("^application/json") then
    return refuse(request, "415", 3, "The body must be JSON: send content-type: application/json.")
  end
  local readable, body = pcall(parse, text)
  if not readable then
    -- The transcoder reads more than JSON, keys without quotes for instance, and would drop those that are no fields.
    return refuse(request, "400", 3, "The body cannot be read as JSON.")
  end
  local name = binding.message ~= "" and unknown_field(body, binding.message, "") or nil
  if binding.message == "" and next(type(body) == "table" and body or {}) then
    return refuse(request, "400", 3, "This call takes no body.")
  end
  if name then
    name = name:sub(1, 200):gsub('[%c"\\\128-\255]', "?")
    return refuse(request, "400", 3, "There is no field " .. name .. " in this request.", violation_of(name, "there is no such field"))
  end
end
