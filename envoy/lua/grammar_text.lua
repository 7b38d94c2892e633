-- Reads a grammar (GBNF) or a pattern (regular expression in a JSON schema) into parts: alternatives, each a list of items, each a literal,
-- a class of characters, a name of a rule, or a group with alternatives of its own. Limits bound what it reads, above all nesting, which
-- llama.cpp reads by recursion.
--
-- An item: {first = its first characters, literal, text, size} or {name} or {inner = alternatives}; with a repetition also
-- {repeats, least, most}.

local exceeded = require("json_text").exceeded
local find, sub, byte = string.find, string.sub, string.byte
local max = math.max

local grammar_text = {}

local text, limits, sums, is_pattern

local function add(name, amount)
  sums[name] = (sums[name] or 0) + amount
  if sums[name] > limits[name] then
    return exceeded(name, sums[name], true)
  end
end

local HEX = { x = 2, u = 4, U = 8 }
local ESCAPES = { n = 10, r = 13, t = 9 }

-- Returns the character of a class at `at`, twice, and the next position; nil for an escape that stands for several characters. Characters
-- beyond ASCII are 128.
local function read_character(at)
  local code = byte(text, at)
  if code ~= 92 then
    return code > 127 and 128 or code, code > 127 and 128 or code, at + 1
  end
  local letter = sub(text, at + 1, at + 1)
  local digits = HEX[letter]
  if digits then
    code = math.min(128, tonumber(sub(text, at + 2, at + 1 + digits), 16) or 128)
    return code, code, at + 2 + digits
  elseif find(letter, "[dDwWsS]") then
    return nil
  end
  code = math.min(128, ESCAPES[letter] or byte(letter) or 128)
  return code, code, at + 2
end

local CLASS, LITERAL = "[%]\\]", '["\\]'

-- Returns the end of the class or literal that opens at `at`: the first bracket or quote without a backslash before it, or the end of the
-- text.
local function closing(written, at, ends)
  local stop = find(written, ends, at + 1)
  while stop and byte(written, stop) == 92 do
    stop = find(written, ends, stop + 2)
  end
  return stop or #written
end

-- Returns the end of the class that opens at `at`, and its characters. Characters beyond ASCII count as one.
local function read_class(at)
  local stop = closing(text, at, CLASS)
  if stop - at > limits["grammar.class_bytes"] then
    return exceeded("grammar.class_bytes", stop - at)
  end
  local first, from = {}, at + 1
  local negated = byte(text, from) == 94
  if negated then
    from = from + 1
  end
  while from < stop do
    local low, high, after = read_character(from)
    if not low then
      return stop, "any"
    end
    if byte(text, after) == 45 and after + 1 < stop then
      high, _, after = read_character(after + 1)
      high = high or 128
    end
    for code = low, max(low, high) do
      first[code] = true
    end
    from = after
  end
  if negated then
    local others = {}
    for code = 0, 128 do
      others[code] = not first[code] or nil
    end
    others[128] = true
    first = others
  end
  return stop, first
end

local function read_literal(at)
  local stop = closing(text, at, LITERAL)
  return stop, { [read_character(at + 1) or 128] = true }, stop == at + 1
end

-- The engine ignores an upper bound above this one.
local MAX_WRITTEN = 2000

-- Returns the lowest and highest number of the repetition whose brace opens at `at`, and its end. The engine accepts more notations (signs,
-- anything after the digits, comments between them). They are refused here, because they would be counted wrongly if this script read them
-- differently.
local function numbers(at)
  local _, stop, low, comma, high = find(text, "^{ *(%d*) *(,?) *(%d*) *}", at)
  if not stop or low .. high == "" or (comma == "" and high ~= "") then
    error({ code = "invalid_value", message = "has a repetition that is not written as {m}, {m,}, {,n} or {m,n}; a brace of a text must be quoted or escaped." }, 0)
  end
  local least = tonumber(low) or 0
  local most = comma == "" and least or tonumber(high)
  if most and most < least then -- The engine counts down without an end.
    error({ code = "invalid_value", message = "has a repetition {m,n} whose n is less than m." }, 0)
  end
  if most and most > MAX_WRITTEN and comma ~= "" then
    most = nil
  end
  return least, most, stop
end

local NAME = "^[%w-_]+"

local SETS = { d = {}, s = { [9] = true, [10] = true, [13] = true, [32] = true }, w = { [95] = true } }
for code = 48, 122 do
  SETS.d[code] = code < 58 or nil
  SETS.w[code] = (code < 58 or code > 96 or (code > 64 and code < 91) or code == 95) or nil
end

-- Joins the literals at the end of a sequence, as the engine does before an escaped character or a quote: a repetition of that character
-- repeats all of them.
local function join_literals(items)
  local from = #items
  while from > 1 and items[from - 1].literal and not items[from - 1].repeats do
    from = from - 1
  end
  local run = {}
  for index = from, #items do
    run[#run + 1] = items[index]
    items[index] = nil
  end
  items[from] = #run == 1 and run[1] or { inner = { run }, size = #run }
  return items[from]
end

-- Reads alternatives from `at` to the end of their group, or of the rule. Returns them and the next place.
local function read_alternatives(at, depth)
  if depth > limits["grammar.depth"] then
    return exceeded("grammar.depth", depth, true)
  end
  local items = {}
  local alternatives = { items }
  while true do
    at = find(text, is_pattern and "." or "%S", at)
    local mark = at and byte(text, at)
    if not mark then
      return alternatives, #text + 1
    end
    local last = items[#items]
    local stop, first, empty
    if mark == 41 then
      return alternatives, at + 1
    elseif mark == 40 then
      local inner
      if is_pattern and find(text, "^%?:", at + 1) then
        at = at + 2
      end
      inner, at = read_alternatives(at + 1, depth + 1)
      items[#items + 1] = { inner = inner }
    elseif mark == 91 then
      stop, first = read_class(at)
      items[#items + 1] = { first = first }
      at = stop + 1
    elseif mark == 124 then
      items = {}
      alternatives[#alternatives + 1] = items
      at = at + 1
    elseif mark == 63 or mark == 42 or mark == 43 or mark == 123 then
      local least, most
      stop = at
      if mark == 63 then
        least, most = 0, 1
      elseif mark == 43 then
        least = 1
      elseif mark == 42 then
        least = 0
      else
        least, most, stop = numbers(at)
      end
      if last and last.joins then
        last = join_literals(items)
      end
      if stop and last then
        if mark == 123 then
          add("grammar.repetitions", max(least, most or 0) * max(1, last.size or 1))
        end
        if last.least then -- A second repetition: the item becomes a group.
          items[#items] = { inner = { { last } }, least = least, most = most }
        else
          last.least, last.most, last.repeats = least, most, true
        end
      end
      at = (stop or at) + 1
    elseif is_pattern then
      if mark == 92 then
        local escaped = sub(text, at + 1, at + 1)
        if find(escaped, "[dDwWsSbBpP]") then
          items[#items + 1] = { first = SETS[escaped] or "any" }
          at = at + 1
        else
          local code, _, after = read_character(at)
          items[#items + 1] = { first = { [code or 128] = true }, literal = true, joins = true, text = sub(text, at, after - 1) }
          at = after - 1
        end
      elseif mark == 46 then
        items[#items + 1] = { first = "any" }
      else
        items[#items + 1] = { first = { [mark > 127 and 128 or mark] = true }, literal = true, joins = mark == 34, text = sub(text, at, at) }
      end
      at = at + 1
    elseif mark == 34 then
      stop, first, empty = read_literal(at)
      if not empty then
        items[#items + 1] = { first = first, literal = true, size = stop - at - 1, text = sub(text, at + 1, stop - 1) }
      end
      at = stop + 1
    elseif find(text, NAME, at) then
      _, stop = find(text, NAME, at)
      if find(text, "^%s*::=", stop + 1) then
        return alternatives, at -- The next rule.
      end
      items[#items + 1] = { name = sub(text, at, stop) }
      at = stop + 1
    else
      items[#items + 1] = { first = "any" }
      at = at + 1
    end
  end
end

-- Returns a grammar without its comments. A comment may stand where space may, and ends at any kind of line end.
local function without_comments(grammar)
  local parts, from, at = {}, 1, 1
  while true do
    at = find(grammar, '["%[#]', at)
    local mark = at and byte(grammar, at)
    if not mark then
      parts[#parts + 1] = sub(grammar, from)
      return table.concat(parts)
    elseif mark == 35 then
      parts[#parts + 1] = sub(grammar, from, at - 1)
      at = find(grammar, "[\r\n]", at) or #grammar + 1
      from = at
    else
      at = closing(grammar, at, mark == 34 and LITERAL or CLASS) + 1
    end
  end
end

-- Returns the alternatives of a pattern, including the text after a surplus parenthesis. `totals` holds the sums over the body.
function grammar_text.pattern(pattern, most, totals)
  text, limits, sums, is_pattern = pattern, most, totals, true
  local read, at = {}, 1
  while at <= #text do
    read[#read + 1], at = read_alternatives(at, 0)
  end
  return read
end

-- Returns the rules of a grammar: {alternatives} by name.
function grammar_text.rules(grammar, most)
  text, limits, sums, is_pattern = without_comments(grammar), most, {}, false
  local rules, count, at = {}, 0, 1
  while true do
    local first, stop, name = find(text, "([%w-_]+)%s*::=", at)
    if not first then
      return rules
    end
    count = count + 1
    if count > limits["grammar.rules"] then
      return exceeded("grammar.rules", count, true)
    end
    local alternatives
    alternatives, at = read_alternatives(stop + 1, 0)
    while rules[name] do -- A duplicate name: both rules are counted.
      name = name .. "'"
    end
    rules[name] = { alternatives = alternatives }
  end
end

return grammar_text
