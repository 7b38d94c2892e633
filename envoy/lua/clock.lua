-- Wall-clock time in microseconds, for durations between two calls of filters.

local clock = {}

-- `handle`: that of a request or of a response.
function clock.now(handle)
  return tonumber(handle:timestampString(EnvoyTimestampResolution.MICROSECOND))
end

-- Returns the duration between two times: 0 if the clock was set back between them.
function clock.between(from, to)
  return math.max(to - from, 0)
end

return clock
