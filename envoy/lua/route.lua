-- Decides about an inference request: whether it may be anonymous, which cluster answers, whether the token's scopes cover it, whether
-- Admission must be asked about the token (admission_digest.lua), and whether the body keeps the limits (request_limits.lua).
-- Runs after jwt_authn, which has verified every key with a dot in it (see the listener). A request without claims is anonymous.
--
-- Settings are keys of the route's metadata, so that each of them is one lookup: `kind` (what the path is for), `anonymous`, those of
-- callers.lua, `ask <cluster>`, `digest` (its version, see admission_digest.lua), `ask tokens` (about all), `most_prompt_bytes` (the longest
-- prompt that fits any server). Headers of clients whose names begin with x-llamesh- have been removed (early_header_mutation). The header
-- x-llamesh-cluster is set last: a script that fails on the way leaves a request that no route takes.

local admission_digest = require("admission_digest")
local callers = require("callers")
local clock = require("clock")
local json_body = require("json_body")
local quoted = require("quotation")
local request_limits = require("request_limits")
local token_scopes = require("token_scopes")

local CLAIMS = "envoy.filters.http.jwt_authn"

-- Maximum length of a model's name, which becomes the value of a header.
local MAX_MODEL = 256
-- Maximum length of a path with a model's name whose characters are all encoded.
local MAX_PATH = 3 * MAX_MODEL + 64

local ANTHROPIC_TYPES = {
  ["401"] = "authentication_error", ["403"] = "permission_error", ["404"] = "not_found_error", ["413"] = "request_too_large",
}

-- Answers with an error in the format of the called API: Anthropic's or OpenAI's (llamesh/kit/inference_errors.py).
-- The code is also in the metadata, for access logs: Anthropic's format has no code.
local function refuse(request, status, kind, code, message, param)
  request:streamInfo():dynamicMetadata():set("llamesh", "refused", true)
  request:streamInfo():dynamicMetadata():set("llamesh", "code", code)
  local body
  if (request:headers():get(":path") or ""):find("/v1/messages", 1, true) then
    if kind == "exceed_context_size_error" then message = "prompt is too long: " .. message end -- Anthropic's message, which its clients recognise
    body = string.format(
      '{"type":"error","error":{"type":"%s","message":"%s"}}', ANTHROPIC_TYPES[status] or "invalid_request_error", message
    )
  else
    body = string.format(
      '{"error":{"message":"%s","type":"%s","param":%s,"code":"%s"}}',
      message, kind, param and '"' .. param .. '"' or "null", code
    )
  end
  request:respond({ [":status"] = status, ["content-type"] = "application/json" }, body)
end

-- Returns whether a request without a token may continue; otherwise refuses it. A web page of another origin, or one that reached Envoy
-- under its own host name, must not use anonymous inference.
local function may_be_anonymous(request, settings, headers)
  if not settings:get("anonymous") then
    refuse(request, "401", "authentication_error", "invalid_api_key",
      "This mesh needs a token: send it as Authorization: Bearer. Get one with POST /auth/token or `llamesh keys create`.")
    return false
  end
  local origin = headers:get("origin")
  if origin and not callers.is_allowed_origin(settings, origin) then
    refuse(request, "403", "permission_error", "origin_not_allowed",
      "Pages of the origin " .. quoted(origin:sub(1, callers.MAX_HOST)) .. " may not use this mesh without a token. LLAMESH_ALLOWED_ORIGINS lists the origins that may.")
    return false
  end
  local host = callers.host(headers)
  if not callers.is_known(settings, host) then
    refuse(request, "403", "permission_error", "host_not_allowed",
      "The host name " .. quoted(host:sub(1, callers.MAX_HOST)) .. " is not known as one of this mesh, so it needs a token here. LLAMESH_ALLOWED_HOSTS lists the host names"
      .. " under which none is needed, beside localhost.")
    return false
  end
  return true
end

-- Returns whether Admission must be asked about the token: its key may be revoked, its user's standing ended, or its contracts limited. A
-- token without a user's id was made by an earlier release. Envoy decides alone about all other tokens.
local function must_ask(request, settings, claims)
  if settings:get("ask tokens") or not claims.uid or not claims.standing then
    return true
  end
  local version = settings:get("digest")
  if not version then
    return false
  end
  local digest = admission_digest.digest(version, function() return request:virtualHost():metadata() end)
  for _, id in ipairs({ claims.jti or "", ("%s:%d"):format(claims.uid, claims.standing), claims.contract or "", claims.user_contract or "" }) do
    if id ~= "" and admission_digest.contains(digest, id) then
      return true
    end
  end
  return false
end

-- OpenAI's paths whose first part is not a server's id.
local FIRST_PARTS = { chat = true, completions = true, embeddings = true, responses = true, rerank = true, reranking = true, models = true }
local SERVER_UUID = 36

-- Returns the path with /v1. All later code reads paths that have it.
local function versioned(path)
  local first = path:match("^/([%w-]+)")
  if first == "v1" or not first then
    return path
  elseif FIRST_PARTS[first] then
    return (path:find("^/[%w-]+/v1/") and first ~= "models") and path or "/v1" .. path
  elseif #first == SERVER_UUID and not path:find("^/v1/", SERVER_UUID + 2) then
    return "/" .. first .. "/v1" .. path:sub(SERVER_UUID + 2)
  end
  return path
end

-- Removes the query and the parameters of the media type. They may be long and are not used: engines and the waker accept 8 KB per line.
local function shorten(headers, path, content_type)
  local query = path:find("?", 1, true)
  if query then headers:replace(":path", path:sub(1, query - 1)) end
  if content_type and content_type ~= "application/json" then headers:replace("content-type", "application/json") end
end

-- Returns the cluster that answers and the scope that a token needs for it; or nil after a refusal.
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
    return -- no inference path: the route answers
  end

  local headers = request:headers()
  local path = headers:get(":path")
  if kind ~= "health" and versioned(path) ~= path then
    path = versioned(path)
    headers:replace(":path", path)
  end
  -- A slash at the end is ignored, unless it belongs to a model's name.
  local bare = path:match("^([^?]+)/%f[?%z]")
  if bare and (kind == "inference" or bare:find("/v1/models$")) then
    path = bare
    headers:replace(":path", path)
  end
  if kind == "health" then
    return shorten(headers, path, headers:get("content-type"))
  end
  local verified = request:streamInfo():dynamicMetadata():get(CLAIMS)
  local claims = verified and verified.claims
  if not claims and not may_be_anonymous(request, settings, headers) then
    return
  end
  local ask = claims and must_ask(request, settings, claims)
  if kind == "models" then
    local server = headers:get(":path"):match("^/([%w-]+)/v1/models")
    if claims and server and not token_scopes.cover(claims, "infer:" .. server) then
      return refuse(request, "403", "permission_error", token_scopes.refusal(claims, "infer:" .. server))
    end
    headers:replace("x-llamesh-scopes", token_scopes.header(claims))
  end
  if kind ~= "inference" then
    if ask then
      request:streamInfo():dynamicMetadata():set("llamesh", "ask", true)
    end
    if #path:gsub("%?.*", "") > MAX_PATH then
      return refuse(request, "404", "invalid_request_error", "model_not_found", "No model has a name as long as the one in this path.", "model")
    end
    return shorten(headers, path, headers:get("content-type"))
  end

  local content_type = headers:get("content-type") or ""
  if not json_body.is_named_by(content_type) then
    return refuse(request, "415", "invalid_request_error", "unsupported_media_type", json_body.NOT_NAMED)
  end
  local encoded = json_body.encoding_problem(headers:get("content-encoding"))
  if encoded then
    return refuse(request, "415", "invalid_request_error", "unsupported_content_encoding", encoded)
  end
  request:streamInfo():dynamicMetadata():set("llamesh.began", "microseconds", clock.now(request)) -- answers.lua reads it
  local buffer = request:body() -- waits for the body: objects fetched from `request` before are invalid afterwards
  local most_prompt = request:metadata():get("most_prompt_bytes")
  local said, problem = request_limits.read(path, buffer and buffer:getBytes(0, buffer:length()) or "", most_prompt)
  if not said then
    return refuse(request, "400", problem.kind or "invalid_request_error", problem.code, quoted(problem.message), problem.param and quoted(problem.param))
  end
  local cluster, scope = target(request, path, said.model)
  if not cluster then
    return
  end
  if claims and not token_scopes.cover(claims, scope) then
    return refuse(request, "403", "permission_error", token_scopes.refusal(claims, scope))
  end
  local facts = request:metadata():get(cluster) -- only if the cluster differs from the defaults
  if ask or (facts and facts.ask) then
    request:streamInfo():dynamicMetadata():set("llamesh", "ask", true)
  end
  if claims then -- Usage without a token has no owner.
    request:streamInfo():dynamicMetadata():set("llamesh", "counted", true)
    -- Only these paths give several answers; answers.lua adds up their usage.
    if said.answers > 1 and (path:find("^[^?]*/completions%f[?%z]") or path:find("^[^?]*/responses%f[?%z]")) then
      request:streamInfo():dynamicMetadata():set("llamesh", "answers", said.answers)
      request:streamInfo():dynamicMetadata():set("llamesh", "prompts", said.prompts)
    end
  end
  if path:find("/v1/messages", 1, true) then -- answers.lua cannot read the path
    request:streamInfo():dynamicMetadata():set("llamesh", "anthropic", true)
  end
  headers = request:headers()
  shorten(headers, path, content_type)
  if facts and facts.silence then
    headers:replace("x-envoy-upstream-rq-per-try-timeout-ms", ("%d000"):format(facts.silence))
    request:streamInfo():dynamicMetadata():set("llamesh", "silence", ("%d"):format(facts.silence))
  end
  headers:replace("x-llamesh-cluster", cluster)
end
