-- Counts what makes a grammar (GBNF) or a pattern (regular expression in a JSON schema) costly for llama.cpp: nesting, which it follows by recursion;
-- repetitions, which it writes out; and nested repetitions, of which it follows every way to divide a text between them.
--
-- What it counts is an upper bound by construction of the text alone. A grammar can be ambiguous in ways that no count of its text tells (a recursive rule with two
-- alternatives that begin alike): these are left to the liveness probe of the engine.

local exceeded = require("json_text").exceeded
local find, sub, byte = string.find, string.sub, string.byte
local max, min = math.max, math.min

local grammar_cost = {}

local UNBOUNDED = 2 -- Ways that * and + add: once more, or not.
local LARGE = 1e9

-- Where the character class ends that opens at `at`.
local function end_of_class(text, at)
  at = at + 1
  while true do
    local stop = find(text, "[%]\\]", at)
    if not stop then
      return #text
    elseif byte(text, stop) == 93 then
      return stop
    end
    at = stop + 2
  end
end

local function end_of_literal(text, at)
  at = at + 1
  while true do
    local stop = find(text, '["\\]', at)
    if not stop then
      return #text
    elseif byte(text, stop) == 34 then
      return stop
    end
    at = stop + 2
  end
end

-- Lowest and highest number of the repetition that opens with the brace at `at`, its end; nil if it is none.
local function numbers(text, at)
  local _, last, low, comma, high = find(text, "^{%s*(%d*)%s*(,?)%s*(%d*)%s*}", at)
  if not last then
    return nil
  end
  local least = tonumber(low) or 0
  return least, comma == "" and least or tonumber(high), last
end

-- Ways in which a repetition of something that has `ways` itself divides a text.
local function repeated(ways, least, most)
  local times
  if not most then
    times = ways > 1 and max(UNBOUNDED, least) or UNBOUNDED
  else
    times = ways > 1 and most or most - least + 1
  end
  return min(LARGE, ways * max(1, times))
end

local PATTERN = "[%(%)%[{*+?\\]"
local GRAMMAR = '[%(%)%[{*+?"#%a:]'

-- Reads a text and calls ready(name, ways, references) for each rule; a pattern is one rule.
local function scan(text, is_pattern, limits, sums, ready)
  local marks = is_pattern and PATTERN or GRAMMAR
  local rules, depth, at = 0, 0, 1
  local groups = {} -- Ways of the groups that are open.
  local ways, last = 1, 1 -- Of the group that is read, and of its last element.
  local name, references = "", {}
  local last_reference
  while true do
    at = find(text, marks, at)
    if not at then
      break
    end
    local mark = byte(text, at)
    if mark == 92 then -- An escaped character of a pattern.
      last, last_reference = 1, nil
      at = at + 2
    elseif mark == 40 then
      depth = depth + 1
      if depth > limits["grammar.depth"] then
        return exceeded("grammar.depth", depth, true)
      end
      groups[depth] = ways
      ways, last, last_reference = 1, 1, nil
      at = at + 1
    elseif mark == 41 then
      last = ways
      ways = max(groups[depth] or 1, last)
      depth = max(0, depth - 1)
      last_reference = nil
      at = at + 1
    elseif mark == 91 then
      at = end_of_class(text, at) + 1
      last, last_reference = 1, nil
    elseif mark == 34 then
      at = end_of_literal(text, at) + 1
      last, last_reference = 1, nil
    elseif mark == 35 then
      at = find(text, "\n", at, true) or #text + 1
    elseif mark == 58 then
      at = at + 1
    elseif mark == 42 or mark == 43 or mark == 63 or mark == 123 then
      local least, most, stop = 0, nil, at
      if mark == 63 then
        most = 1
      elseif mark == 123 then
        least, most, stop = numbers(text, at)
        if stop then
          sums["grammar.repetitions"] = (sums["grammar.repetitions"] or 0) + max(least, most or 0)
          if sums["grammar.repetitions"] > limits["grammar.repetitions"] then
            return exceeded("grammar.repetitions", sums["grammar.repetitions"], true)
          end
        end
      end
      if stop then
        if last_reference then
          references[#references + 1] = { last_reference, least, most }
          last_reference = nil
        end
        last = repeated(last, least, most)
        ways = max(ways, last)
        if ways > limits["grammar.ambiguity"] then
          return exceeded("grammar.ambiguity", ways, ways >= LARGE)
        end
      end
      at = (stop or at) + 1
    else -- A name: of a rule that begins, or of one that is used.
      local _, stop = find(text, "^[%w-_]+", at)
      local word = sub(text, at, stop)
      local _, begins = find(text, "^%s*::=", stop + 1)
      if begins then
        if rules > 0 then
          ready(name, ways, references)
        end
        rules = rules + 1
        if rules > limits["grammar.rules"] then
          return exceeded("grammar.rules", rules, true)
        end
        name, references, ways, last, last_reference, depth = word, {}, 1, 1, nil, 0
        stop = begins
      else
        references[#references + 1] = { word, 1, 1 }
        last, last_reference = 1, word
      end
      at = stop + 1
    end
  end
  ready(name, ways, references)
end

-- A pattern of a JSON schema. Sums over the body are kept in `sums`.
function grammar_cost.pattern(text, limits, sums)
  scan(text, true, limits, sums, function() end)
end

-- A whole grammar.
function grammar_cost.check(text, limits)
  local rules = {}
  scan(text, false, limits, {}, function(name, ways, references)
    rules[name] = { ways = ways, references = references }
  end)
  -- A repeated rule has the ways of that rule in each of its turns.
  local function total(rule)
    if rule.total then
      return rule.total
    end
    rule.total = rule.ways -- What a rule that leads back to itself counts there.
    local most = rule.ways
    for _, reference in ipairs(rule.references) do
      local inner = rules[reference[1]]
      if inner and inner ~= rule then
        most = max(most, repeated(total(inner), reference[2], reference[3]))
      end
    end
    rule.total = most
    if most > limits["grammar.ambiguity"] then
      return exceeded("grammar.ambiguity", most, most >= LARGE)
    end
    return most
  end
  for _, rule in pairs(rules) do
    total(rule)
  end
end

return grammar_cost
