-- Refuses management calls that come without a token under a host name that is not known as one of this mesh (callers.lua). Where only this machine reaches Envoy,
-- or inference needs no token, that holds for all of them; elsewhere for web pages only, since other programs use whatever name leads here.
--
-- Runs after jwt_authn, which has set the header x-llamesh-claims where a token was verified. Settings are in the metadata of the virtual host: those of callers.lua,
-- `open <path>` and `open <path of a gRPC service>` for calls that only read what is no secret, and `pages only`. REMEDY is put before this script.

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
