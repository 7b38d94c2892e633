-- Reads the tokens of an answer from its bytes, in the same meaning for every API.
--
-- The number of stored bytes is bounded. Nothing is parsed: a quote inside a text is escaped,
-- so no text of a model can contain the names that are searched for. Envoy's own filter for streams parses each event, and crashes at
-- `data: null`, which llama.cpp sends first to a request with several prompts.
--
-- A stream has `timings` in the last event of each answer, whether or not the client asked for usage. A stream of Anthropic's API has none:
-- its first event has the usage of the prompt, its last event that of the answer. A whole body has `usage`; if it has several answers, only
-- that of the first one. A client can request repeated timings: with each token (`timings_per_token`), and inside `__verbose` (`verbose`).
-- They count once for each answer.

local find, match, sub, byte, floor = string.find, string.match, string.sub, string.byte, math.floor
local QUOTE, BACKSLASH, COLON, BRACE, BRACKET = 34, 92, 58, 123, 91

local USAGE, TIMINGS = '"usage":{', '"timings":{'
-- Maximum number of stored bytes of an unfinished event. The usage is at its end, except in an event with `__verbose`.
local MAX_EVENT = 1048576
-- Maximum number of stored bytes of a whole body with several answers. The lengths of the answers after them are unknown.
local MAX_BODY = 16777216
-- The names of fields with text of the model.
local WRITTEN = { content = true, text = true, reasoning_content = true, arguments = true }

local usage = {}

local function number(object, name)
  return tonumber(match(object, '"' .. name .. '":(%d+)'))
end

-- Anthropic's API reports cached tokens apart from the rest of the prompt; the other APIs include them.
local function prompt_of(object)
  local input = number(object, "input_tokens")
  return number(object, "prompt_tokens") or input and input + (number(object, "cache_read_input_tokens") or 0)
end

local function answer_of(object)
  return number(object, "completion_tokens") or number(object, "output_tokens")
end

-- Calls `found(object, at)` for each object in `text` that begins with `mark`. Returns the position of an unfinished object, or nil.
local function each(text, mark, found)
  local at = find(text, mark, 1, true)
  while at do
    local object = match(text, "^%b{}", at + #mark - 1)
    if not object then
      return at
    end
    found(object, at)
    at = find(text, mark, at + #mark, true)
  end
end

-- Returns the position of the end of the string whose opening quote is at `at`, or nil.
local function string_end(text, at)
  local last, escaped = at, nil
  repeat
    last = find(text, '["\\]', last + 1)
    escaped = last and byte(text, last) == BACKSLASH
    last = escaped and last + 1 or last
  until not escaped
  return last
end

-- Returns whether the name at `at` is a name of the outermost object, which begins at `from`.
local function outermost(event, from, at)
  local depth = 0
  while from and from < at do
    local mark = byte(event, from)
    if mark == QUOTE then
      from = string_end(event, from)
    else
      depth = depth + ((mark == BRACE or mark == BRACKET) and 1 or -1)
    end
    from = from and find(event, '["{}%[%]]', from + 1)
  end
  return depth == 1
end

-- Returns whether the timings in `event` from `at` to `last` are those of a whole answer, and are not repeated.
local function ends_answer(event, at, last)
  -- Timings with each token are cumulative; the last ones are the total.
  if find(event, '"finish_reason":null', 1, true) then
    return false
  elseif find(event, '"type":"response.', 1, true) and not find(event, '"type":"response.completed"', 1, true) then
    return false
  end
  local begins = match(event, "^[^{\n]*\n?data: (){")
  if not begins then
    -- The event was too long: its beginning was not stored.
    return sub(event, last + 1) == "}\n\n"
  end
  return not find(event, '"__verbose":{', 1, true) or outermost(event, begins, at)
end

-- Reads a stream piece by piece: `add(bytes)`, then `sum(expected, prompts)`.
function usage.stream()
  local rest, ended, prompt, completion = "", 0, 0, 0
  local reader = {}

  local function read(events)
    each(events, TIMINGS, function(object, at)
      local start, next_event = 1, nil
      while true do
        _, next_event = find(events, "\n\n", start, true)
        if not next_event or next_event >= at then
          break
        end
        start = next_event + 1
      end
      if ends_answer(sub(events, start, next_event), at - start + 1, at - start + #TIMINGS - 1 + #object) then
        ended = ended + 1
        prompt = prompt + (number(object, "prompt_n") or 0) + (number(object, "cache_n") or 0)
        completion = completion + (number(object, "predicted_n") or 0)
      end
    end)
    each(events, USAGE, function(object)
      reader.prompt = prompt_of(object) or reader.prompt
      -- The first event of a stream of messages reports the prompt, and 0 tokens for the answer.
      local begins = number(object, "input_tokens") and number(object, "output_tokens") == 0
      reader.completion = not begins and answer_of(object) or reader.completion
    end)
  end

  function reader.add(bytes)
    -- Usually a piece is an event.
    if rest == "" and sub(bytes, -2) == "\n\n" then
      return read(bytes)
    end
    rest = rest .. bytes
    local ends = 0
    for at in rest:gmatch("\n\n()") do
      ends = at - 1
    end
    if ends > 0 then
      read(sub(rest, 1, ends))
    end
    rest = sub(rest, math.max(ends + 1, #rest - MAX_EVENT + 1))
  end

  -- Returns the tokens of the prompts, each counted once, and those of all answers. A number that not all `expected` answers reported is
  -- nil.
  function reader.sum(expected, prompts)
    if ended == 0 then
      return reader.prompt, reader.completion
    elseif ended < expected then
      return nil
    end
    return floor(prompt * prompts / ended + 0.5), completion
  end

  return reader
end

-- Returns the bytes of the model's text in each choice of a body.
local function lengths(body)
  local all, depth, key = {}, 0, nil
  local _, at = find(body, '"choices":[', 1, true)
  while at do
    at = find(body, '["{}%[%]]', at + 1)
    local mark = at and byte(body, at)
    if mark == QUOTE then
      local last = string_end(body, at)
      if not last then
        return all
      elseif byte(body, last + 1) == COLON then
        key = sub(body, at + 1, last - 1)
      elseif WRITTEN[key] and byte(body, at - 1) == COLON then
        all[#all] = all[#all] + last - at - 1
      end
      at = last
    elseif mark == BRACE or mark == BRACKET then
      depth = depth + 1
      if depth == 1 then
        all[#all + 1] = 0
      end
    elseif mark then
      depth = depth - 1
      if depth < 0 then
        return all
      end
    end
  end
  return all
end

-- Returns the length of all choices of a body divided by that of the first; `expected` if it is unknown.
local function times_the_first(body, expected)
  local written = lengths(body)
  local all = 0
  for _, length in ipairs(written) do
    all = all + length
  end
  return (written[1] or 0) > 0 and all / written[1] or expected
end

-- Reads the usage of a whole body. If llama.cpp reports only the usage of the first of several answers, the others are estimated from the
-- length of their text, and every prompt counts like the first one.
function usage.whole(several)
  local rest, reports, prompt, completion = "", 0, nil, nil
  local pieces, size = {}, 0
  local reader = {}

  function reader.add(bytes)
    rest = rest .. bytes
    local open = each(rest, USAGE, function(object)
      reports = reports + 1
      prompt = prompt_of(object) and (prompt or 0) + prompt_of(object)
      completion = answer_of(object) and (completion or 0) + answer_of(object)
    end)
    rest = sub(rest, open or math.max(1, #rest - #USAGE + 2))
    size = size + #bytes
    if several and size <= MAX_BODY then
      pieces[#pieces + 1] = bytes
    end
  end

  function reader.sum(expected, prompts)
    if not prompt then
      return nil
    elseif not several then
      return prompt, completion or 0
    elseif reports > 1 then
      return floor(prompt * prompts / reports + 0.5), completion
    end
    local times = size <= MAX_BODY and times_the_first(table.concat(pieces), expected) or expected
    return prompt * prompts, floor((completion or 0) * times + 0.5)
  end

  return reader
end

return usage
