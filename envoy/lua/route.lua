-- Decides about an inference request: who may be anonymous, which cluster answers, whether the token's scope covers it, and what may not pass.
-- Runs after jwt_authn, which has verified every key with a dot in it (see the listener); a request without claims is anonymous.
--
-- Settings are keys of the route's metadata, so that each is one lookup: `kind` (what the path is for), `anonymous`, `origin <origin>`, `host <name>`,
-- `ask <cluster>`, `revoked <token id>`. Header names that begin with x-llamesh- are gone by now (early_header_mutation).
-- The header x-llamesh-cluster is set last: a script that fails on the way leaves a request that no route takes.

local json_keys = require("json_keys")

local CLAIMS = "envoy.filters.http.jwt_authn"

-- Keys that are looked at, at any depth. `forbidden`: fields of llama.cpp that reach another client's state, the machine, or a choice that is not a client's;
-- refused by name, never dropped in silence. `media`: their value llama.cpp would fetch when it is a URL.
local WATCHED = { model = "model" }
for _, name in ipairs({ "n_discard", "chat_parser", "id_slot", "slot_id", "lora", "conversation_id", "grammar_file", "media_path" }) do
  WATCHED[name] = "forbidden"
end
for _, name in ipairs({ "url", "image_url", "video_url", "audio_url", "file_url", "data", "file_data" }) do
  WATCHED[name] = "media"
end
-- Windows of samplers: llama.cpp allocates as many entries as the number says, and one request could take the machine's memory.
local LARGEST = 131072
for _, name in ipairs({ "repeat_last_n", "dry_penalty_last_n" }) do
  WATCHED[name] = "bounded"
end
local REMOTE = { http = true, https = true, file = true, ftp = true }
-- A model's name becomes a header's value.
local MAX_MODEL = 256

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

-- Whether a request without a token may go on; it is refused otherwise. A web page of another origin, or one that reached us by a host name of its own
-- (DNS rebinding), must not use anonymous inference.
local function may_be_anonymous(request, settings, headers)
  if not settings:get("anonymous") then
    refuse(request, "401", "authentication_error", "invalid_api_key",
      "This mesh needs a token: send it as Authorization: Bearer. Get one with POST /auth/token or `llamesh keys create`.")
    return false
  end
  local origin = headers:get("origin")
  if origin and not settings:get("origin " .. origin) then
    refuse(request, "403", "permission_error", "origin_not_allowed",
      "Pages of this origin may not use this mesh without a token. Origins are allowed with LLAMESH_ALLOWED_ORIGINS.")
    return false
  end
  local host = (headers:get(":authority") or ""):lower():gsub(":%d*$", "")
  if not settings:get("host " .. host) then
    refuse(request, "403", "permission_error", "host_not_allowed",
      "Without a token the mesh answers only to its own host names, localhost among them.")
    return false
  end
  return true
end

local function in_scope(claims, wanted)
  for _, scope in ipairs(claims.scopes or {}) do
    if scope == "infer:*" or scope == wanted then
      return true
    end
  end
  return false
end

-- What the body says: {model, forbidden, remote, excess}, all but the first the names of keys that may not pass; nil where it is not JSON.
local function read(body)
  local said = {}
  local readable = json_keys.each(body, WATCHED, function(name, depth, at)
    local kind = WATCHED[name]
    if kind == "forbidden" then
      said.forbidden = said.forbidden or name
    elseif kind == "media" then
      local scheme = (json_keys.string_at(body, at, 64) or ""):match("^%s*(%a+):")
      if scheme and REMOTE[scheme:lower()] then
        said.remote = said.remote or name
      end
    elseif kind == "bounded" then
      local number = tonumber(body:match("^-?[%d.eE+-]+", at) or "")
      if number and number > LARGEST then
        said.excess = said.excess or name
      end
    elseif depth == 1 then
      said.model = json_keys.string_at(body, at, 6 * MAX_MODEL + 6)
    end
  end)
  return readable and said or nil
end

-- The cluster that answers, and the scope that a token needs for it; or nil after a refusal.
local function target(request, path, model)
  local server = path:match("^/([%w-]+)/v1/")
  if server then
    return "s:" .. server, "infer:" .. server
  end
  if not model or model == "" then
    refuse(request, "400", "invalid_request_error", "missing_required_parameter",
      "The field model is missing: name a model that GET /v1/models lists.", "model")
    return nil
  end
  if #model > MAX_MODEL or model:find("[^\33-\126]") then
    refuse(request, "404", "invalid_request_error", "model_not_found",
      "No model is served under the name " .. quoted(model:sub(1, MAX_MODEL)) .. ".", "model")
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

  local headers = request:headers()
  local verified = request:streamInfo():dynamicMetadata():get(CLAIMS)
  local claims = verified and verified.claims
  if claims then
    if claims.jti and settings:get("revoked " .. claims.jti) then
      return refuse(request, "401", "authentication_error", "invalid_api_key", "The key was revoked.")
    end
  elseif not may_be_anonymous(request, settings, headers) then
    return
  end
  if kind ~= "inference" then
    return
  end

  local content_type = headers:get("content-type") or ""
  if not content_type:lower():find("^application/json") then
    return refuse(request, "415", "invalid_request_error", "unsupported_media_type",
      "The body must be JSON: send content-type: application/json.")
  end
  local path = headers:get(":path")
  local buffer = request:body() -- waits for it: what was fetched from `request` before must be fetched anew
  local said = buffer and read(buffer:getBytes(0, buffer:length()))
  if not said then
    return refuse(request, "400", "invalid_request_error", "invalid_json", "The body is not a JSON object.")
  end
  local cluster, scope = target(request, path, said.model)
  if not cluster then
    return
  end
  if claims and not in_scope(claims, scope) then
    return refuse(request, "403", "permission_error", "scope_missing", "The token lacks the scope " .. quoted(scope) .. ".")
  end
  if said.forbidden then
    return refuse(request, "400", "invalid_request_error", "unsupported_parameter",
      "The field " .. said.forbidden .. " may not be sent.", said.forbidden)
  end
  if said.remote then
    return refuse(request, "400", "invalid_request_error", "remote_media",
      "Media is not fetched from elsewhere: send it in the request, as a data: URL.", said.remote)
  end
  if said.excess then
    return refuse(request, "400", "invalid_request_error", "invalid_value",
      "The field " .. said.excess .. " may be " .. LARGEST .. " at most.", said.excess)
  end

  local facts = request:metadata():get(cluster) -- only if the cluster is not as usual
  if (claims and claims.ask) or (facts and facts.ask) then
    request:streamInfo():dynamicMetadata():set("llamesh", "ask", true)
  end
  if facts and facts.silence then
    request:headers():replace("x-envoy-upstream-rq-per-try-timeout-ms", ("%d000"):format(facts.silence))
    request:streamInfo():dynamicMetadata():set("llamesh", "silence", ("%d"):format(facts.silence))
  end
  request:headers():replace("x-llamesh-cluster", cluster)
end
