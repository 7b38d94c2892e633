-- Decides who may be anonymous, before jwt_authn looks for a token.
--
-- * Tutorials tell people to send `not-needed` or `sk-...`: where anonymous inference is allowed, a key without a dot is no token and is dropped.
--   A key with a dot is a token and must verify.
-- * A web page of another origin, or one that reached us by a host name of its own (DNS rebinding), must not use anonymous inference.
--
-- Header names that begin with x-llamesh- are gone by now (early_header_mutation). Settings are keys of the route's metadata, so that each is one
-- lookup: `anonymous`, `origin <origin>`, `host <name>`.

local function refuse(request, status, kind, code, message)
  request:streamInfo():dynamicMetadata():set("llamesh", "refused", true)
  request:respond(
    { [":status"] = status, ["content-type"] = "application/json" },
    string.format('{"error":{"message":"%s","type":"%s","param":null,"code":"%s"}}', message, kind, code)
  )
end

local function is_token(key)
  return key ~= nil and key:find(".", 1, true) ~= nil
end

function envoy_on_request(request)
  local settings = request:metadata()
  if not settings:get("kind") then
    return -- no such path; the route says so
  end

  local headers = request:headers()
  local bearer = headers:get("authorization")
  if bearer then
    bearer = bearer:match("^[Bb][Ee][Aa][Rr][Ee][Rr] +(%S+) *$")
  end
  local api_key = headers:get("x-api-key")
  if is_token(bearer) then
    headers:replace("authorization", "Bearer " .. bearer)
    headers:remove("x-api-key")
    return
  end
  headers:remove("authorization")
  if is_token(api_key) then
    return
  end
  headers:remove("x-api-key")

  if not settings:get("anonymous") then
    return refuse(request, "401", "authentication_error", "invalid_api_key",
      "This mesh needs a token: send it as Authorization: Bearer. Get one with POST /auth/token or `llamesh keys create`.")
  end
  local origin = headers:get("origin")
  if origin and not settings:get("origin " .. origin) then
    return refuse(request, "403", "permission_error", "origin_not_allowed",
      "Pages of this origin may not use this mesh without a token. Origins are allowed with LLAMESH_ALLOWED_ORIGINS.")
  end
  local host = (headers:get(":authority") or ""):lower():gsub(":%d*$", "")
  if not settings:get("host " .. host) then
    return refuse(request, "403", "permission_error", "host_not_allowed",
      "Without a token the mesh answers only to its own host names, localhost among them.")
  end
end
