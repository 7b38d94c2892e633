-- Chooses the cluster of an inference request and refuses what may not pass. Runs after jwt_authn (who) and json_to_metadata (which model).
--
-- Settings are keys of the route's metadata, so that each is one lookup: `kind` (what the path is for), `anonymous`, `ask <cluster>`, `revoked <token id>`.
-- The header x-llamesh-cluster is set last: a script that fails on the way leaves a request that no route takes.

local CLAIMS = "envoy.filters.http.jwt_authn"

-- Fields of llama.cpp that reach another client's state, the machine, or a choice that is not a client's. Refused by name, never dropped in silence.
local FORBIDDEN = { "n_discard", "chat_parser", "id_slot", "slot_id", "lora", "conversation_id", "grammar_file", "media_path" }
-- Keys whose value llama.cpp would fetch when it is a URL, and what such a URL begins with.
local MEDIA = { "url", "image_url", "video_url", "audio_url", "file_url", "data", "file_data" }
-- Both as they stand in JSON, made once: a search begins with the quote, which is rare in prompts.
local KEYS = {}
for _, names in ipairs({ FORBIDDEN, MEDIA }) do
  for _, name in ipairs(names) do
    KEYS[name] = '"' .. name .. '"'
  end
end
local REMOTE = { http = true, https = true, file = true, ftp = true }

local function quoted(text)
  return (text:gsub('[%c"\\\128-\255]', "?"))
end

local function refuse(request, status, kind, code, message, param)
  request:streamInfo():dynamicMetadata():set("llamesh", "refused", true)
  request:respond(
    { [":status"] = status, ["content-type"] = "application/json" },
    string.format(
      '{"error":{"message":"%s","type":"%s","param":%s,"code":"%s"}}',
      message, kind, param and '"' .. param .. '"' or "null", code
    )
  )
end

local function in_scope(claims, wanted)
  for _, scope in ipairs(claims.scopes or {}) do
    if scope == "infer:*" or scope == wanted then
      return true
    end
  end
  return false
end

-- JSON may write any character as \uXXXX: `"id\u005fslot"` is the same key. Printable ASCII is undone, but for quote and backslash, which must stay escaped.
local function unescaped(body)
  if not body:find("\\u00", 1, true) then
    return body
  end
  return (body:gsub("\\u00([2-7]%x)", function(hex)
    if hex ~= "22" and hex:lower() ~= "5c" then
      return string.char(tonumber(hex, 16))
    end
  end))
end

-- Calls `found` with the end of each `"name":` in the body until it returns true. Inside of a string the closing quote would be an escaped one, so only
-- keys are found.
local function any_key(body, name, found)
  local key, from = KEYS[name], 1
  while true do
    local first, last = body:find(key, from, true)
    if not first then
      return false
    end
    local _, colon = body:find("^%s*:%s*", last + 1)
    if colon and found(colon) then
      return true
    end
    from = last + 1
  end
end

local function present()
  return true
end

local function forbidden_field(body)
  for _, name in ipairs(FORBIDDEN) do
    if any_key(body, name, present) then
      return name
    end
  end
end

local function remote_media(body)
  local function is_remote(colon)
    local scheme = body:match('^"%s*(%a+):', colon + 1)
    return scheme ~= nil and REMOTE[scheme:lower()] == true
  end
  for _, name in ipairs(MEDIA) do
    if any_key(body, name, is_remote) then
      return name
    end
  end
end

-- The cluster that answers, and the scope that a token needs for it; or nil after a refusal.
local function target(request, fields)
  local server = request:headers():get(":path"):match("^/([%w-]+)/v1/")
  if server then
    return "s:" .. server, "infer:" .. server
  end
  local model = fields.model
  if type(model) ~= "string" or model == "" then
    refuse(request, "400", "invalid_request_error", "missing_required_parameter",
      "The field model is missing: name a model that GET /v1/models lists.", "model")
    return nil
  end
  if #model > 256 or model:find("[^\33-\126]") then -- it becomes a header value
    refuse(request, "404", "invalid_request_error", "model_not_found",
      "No model is served under the name " .. quoted(model:sub(1, 256)) .. ".", "model")
    return nil
  end
  return "m:" .. model, "infer:" .. model
end

function envoy_on_request(request)
  local settings = request:metadata()
  local kind = settings:get("kind")
  if not kind then
    return -- no such path; the route says so
  end

  local known = request:streamInfo():dynamicMetadata()
  local verified = known:get(CLAIMS)
  local claims = verified and verified.claims
  if not claims and not settings:get("anonymous") then
    return refuse(request, "401", "authentication_error", "invalid_api_key",
      "This mesh needs a token: send it as Authorization: Bearer.")
  end
  if claims and claims.jti and settings:get("revoked " .. claims.jti) then
    return refuse(request, "401", "authentication_error", "invalid_api_key", "The key was revoked.")
  end
  if kind ~= "inference" then
    return
  end

  local content_type = request:headers():get("content-type") or ""
  if not content_type:lower():find("^application/json") then
    return refuse(request, "415", "invalid_request_error", "unsupported_media_type",
      "The body must be JSON: send content-type: application/json.")
  end
  local fields = known:get("llamesh") or {}
  if fields.unreadable then
    return refuse(request, "400", "invalid_request_error", "invalid_json", "The body is not valid JSON.")
  end
  local cluster, scope = target(request, fields)
  if not cluster then
    return
  end
  if claims and not in_scope(claims, scope) then
    return refuse(request, "403", "permission_error", "scope_missing", "The token lacks the scope " .. quoted(scope) .. ".")
  end
  local ask = (claims and claims.ask) or settings:get("ask " .. cluster)

  local buffer = request:body() -- waits for it: what was fetched from `request` before must be fetched anew
  local body = buffer and unescaped(buffer:getBytes(0, buffer:length())) or ""
  local field = forbidden_field(body)
  if field then
    return refuse(request, "400", "invalid_request_error", "unsupported_parameter", "The field " .. field .. " may not be sent.", field)
  end
  field = remote_media(body)
  if field then
    return refuse(request, "400", "invalid_request_error", "remote_media",
      "Media is not fetched from elsewhere: send it in the request, as a data: URL.", field)
  end

  if ask then
    request:streamInfo():dynamicMetadata():set("llamesh", "ask", true)
  end
  request:headers():replace("x-llamesh-cluster", cluster)
end
