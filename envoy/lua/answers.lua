-- Measures an answer for access log and metrics, in the metadata `llamesh.usage`: `prompt_tokens` and `completion_tokens` of an answer to a
-- request with an access token, `token_microseconds` (time between two tokens) of such a stream, `tokenless_bytes` and `tokenless_framing`
-- (comments and events of progress in such a stream, and the framing of their chunks), and `first_token_microseconds` of every stream. Puts an error of the engine into the format of the called API (engine_errors.lua); only an error is buffered until it is
-- complete.
--
-- All other bytes are forwarded as they arrive. Of an answer to an anonymous request only the first token is measured: after it Envoy
-- forwards the chunks without this script.

local clock = require("clock")
local engine_errors = require("engine_errors")
local first_token = require("first_token")
local usage = require("usage")

-- A body may end with an empty chunk, for which Envoy returns no bytes.
local function bytes_of(chunk)
  local length = chunk:length()
  return length > 0 and chunk:getBytes(0, length) or ""
end

local function write(response, name, value)
  response:streamInfo():dynamicMetadata():set("llamesh.usage", name, value)
end

-- Returns a function that writes the numbers of tokens that are known and have changed. It returns whether the completion has.
local function token_writer(response)
  local stored_prompt, stored_completion
  return function(prompt, completion)
    if prompt and prompt ~= stored_prompt then
      stored_prompt = prompt
      write(response, "prompt_tokens", prompt)
    end
    if not completion or completion == stored_completion then
      return false
    end
    stored_completion = completion
    write(response, "completion_tokens", completion)
    return true
  end
end

-- Returns the bytes that HTTP/1.1 adds to a chunk of this length: its length in hexadecimal digits, and two line ends.
local function framing(length)
  return #string.format("%x", length) + 4
end

-- Returns a function that counts a chunk without a token. Envoy forwards the chunks of a slow stream as they came, one by one.
local function tokenless_writer(response)
  local size, added = 0, 0
  return function(length)
    size, added = size + length, added + framing(length)
    write(response, "tokenless_bytes", size)
    write(response, "tokenless_framing", added)
  end
end

-- `began`: when the request began.
local function read_stream(response, request, began)
  local expected, prompts = request.answers or 1, request.prompts or 1
  local reader, write_tokens = request.counted and usage.stream(), token_writer(response)
  local count_tokenless = tokenless_writer(response)
  local find_first = first_token.finder()
  -- Time of the first token; nil before it arrives.
  local first
  for chunk in response:bodyChunks() do
    local bytes = bytes_of(chunk)
    local arrived, without = find_first(bytes)
    if arrived and not first then
      first = clock.now(response)
      write(response, "first_token_microseconds", clock.between(began, first))
      if not reader then
        return
      end
    end
    if reader then
      if without > 0 then
        count_tokenless(without)
      end
      reader.add(bytes)
      -- Inside the loop: a client may disconnect after the last event, and then no code after this loop runs.
      local prompt, completion = reader.sum(expected, prompts)
      local changed = write_tokens(prompt or reader.prompt, prompt and completion)
      if changed and first and completion > expected then
        -- The choices are generated in parallel, so the first tokens of all arrive at about the same time.
        local each = clock.between(first, clock.now(response)) * expected / (completion - expected)
        write(response, "token_microseconds", math.floor(each + 0.5))
      end
    end
  end
end

local function read_whole(response, request)
  local expected, prompts = request.answers or 1, request.prompts or 1
  local reader = usage.whole(expected > 1)
  for chunk in response:bodyChunks() do
    reader.add(bytes_of(chunk))
  end
  local prompt, completion = reader.sum(expected, prompts)
  if prompt and completion then
    token_writer(response)(prompt, completion)
  end
end

function envoy_on_response(response)
  local headers = response:headers()
  local kind = headers:get("content-type") or ""
  local status = tonumber(headers:get(":status"))
  local json = kind:find("^application/json")
  if status >= 400 and json then
    return engine_errors.reshape(response, status, tonumber(headers:get("content-length")))
  elseif status ~= 200 then
    return
  end
  local metadata = response:streamInfo():dynamicMetadata()
  local request = metadata:get("llamesh") or {}
  local began = metadata:get("llamesh.began")
  if began and kind:find("^text/event%-stream") then
    return read_stream(response, request, began.microseconds)
  elseif json and request.counted then
    return read_whole(response, request)
  end
end
