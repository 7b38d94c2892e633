-- Decides which callers need no token: web pages by their origin, and all callers by the host name of the request. A web page whose name
-- resolves to this machine (DNS rebinding) has the same origin for its browser, so only the host name reveals it. IP addresses and loopback
-- names cannot be rebound.
--
-- Each setting is one lookup: `origin <origin or pattern>`, `host <name>`, and `any address` if other machines reach Envoy by IP
-- addresses.

local callers = {}

-- Maximum length of a host name in DNS, with a port.
callers.MAX_HOST = 260

-- Names of the loopback interface that no other machine can have: addresses, and localhost. The unspecified address leads there too.
local function is_loopback(host)
  return host == "localhost" or host:find("^127%.%d+%.%d+%.%d+$") ~= nil or host == "0.0.0.0"
    or host == "[::1]" or host == "[::]" or host:find("^%[::ffff:127%.%d+%.%d+%.%d+%]$") ~= nil
end

local function is_address(host)
  return host:find("^%d+%.%d+%.%d+%.%d+$") ~= nil or host:find("^%[[%x:.]+%]$") ~= nil
end

-- Returns the host name of a request in the form of the settings: without its port, and without a dot at its end.
function callers.host(headers)
  return ((headers:get(":authority") or ""):lower():gsub(":%d*$", ""):gsub("%.$", ""))
end

-- Returns whether a host name is a known name of this mesh.
function callers.is_known(settings, host)
  return is_loopback(host) or settings:get("host " .. host) ~= nil or (settings:get("any address") ~= nil and is_address(host))
end

-- Returns whether an origin is allowed, literally or by a pattern such as https://*.example.com: one lookup for each label.
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
