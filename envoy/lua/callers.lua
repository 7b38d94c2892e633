-- Who may call without a token: web pages by their origin, and everybody by the host name that a request came under. A web page whose own name was made to lead to
-- this machine (DNS rebinding) is of the same origin for its browser; what gives it away is that name. Nobody can do that to an address, nor to a loopback name.
--
-- Settings are one lookup each: `origin <origin or pattern>`, `host <name>`, and `any address` where other machines reach Envoy by addresses.

local callers = {}

-- Longest host name of DNS, and a port.
callers.MAX_HOST = 260

-- Names of the loopback interface that nobody else can have: addresses, and localhost. "Any address" leads there too.
local function is_loopback(host)
  return host == "localhost" or host:find("^127%.%d+%.%d+%.%d+$") ~= nil or host == "0.0.0.0"
    or host == "[::1]" or host == "[::]" or host:find("^%[::ffff:127%.%d+%.%d+%.%d+%]$") ~= nil
end

local function is_address(host)
  return host:find("^%d+%.%d+%.%d+%.%d+$") ~= nil or host:find("^%[[%x:.]+%]$") ~= nil
end

-- The host name of a request as settings have it: without port, and without the dot of a full name.
function callers.host(headers)
  return ((headers:get(":authority") or ""):lower():gsub(":%d*$", ""):gsub("%.$", ""))
end

-- Whether a host name is known as one of this mesh.
function callers.is_known(settings, host)
  return is_loopback(host) or settings:get("host " .. host) ~= nil or (settings:get("any address") ~= nil and is_address(host))
end

-- An origin that is allowed as it is, or by a pattern such as https://*.example.com: one lookup for each of its labels.
function callers.is_allowed_origin(settings, origin)
  if settings:get("origin " .. origin) then return true end
  local rest = origin:match("^https://[%w-]+(%..+)$")
  while rest and #rest <= callers.MAX_HOST do
    if settings:get("origin https://*" .. rest) then return true end
    rest = rest:match("^%.[%w-]+(%..+)$")
  end
  return false
end

return callers
