-- Refuses management calls without a token under a host name that is not known as one of this mesh (callers.lua). If only this machine
-- reaches Envoy, or if inference needs no token, the rule applies to all callers; otherwise to web pages only, because programs may use any
-- name of this machine.
--
-- Runs after jwt_authn, which sets the header x-llamesh-claims if it has verified a token. Settings are in the metadata of the virtual
-- host: those of callers.lua, `open <path>` and `open <path of a gRPC service>` for calls that only read public data, and `pages only`.
-- REMEDY is put before this script.

local callers = require("callers")
local quoted = require("quotation")
local rpc_status = require("rpc_status")

function envoy_on_request(request)
  local headers = request:headers()
  if headers:get("x-llamesh-claims") then return end
  local settings = request:virtualHost():metadata()
  local path = headers:get(":path"):gsub("%?.*", ""):gsub("/+$", "")
  if settings:get("open " .. path) or settings:get("open " .. (path:match("^/[^/]+/") or "")) then return end
  local origin = headers:get("origin")
  if settings:get("pages only") and (not origin or callers.is_allowed_origin(settings, origin)) then return end
  local host = callers.host(headers)
  if callers.is_known(settings, host) then return end
  host = quoted(host:sub(1, callers.MAX_HOST))
  rpc_status.refuse(request, "403", {
    code = 7,
    reason = "HOST_NOT_ALLOWED",
    message = "The host name " .. host .. " is not known as one of this mesh, so nobody can log in under it. LLAMESH_ALLOWED_HOSTS lists the host names that are,"
      .. " beside localhost.",
    metadata = { host = host },
    remedy = REMEDY,
  })
end
