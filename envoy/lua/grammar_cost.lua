-- Calculates the cost of a grammar or a pattern for llama.cpp, which follows every way to parse a text for each token of the vocabulary.
-- So the cost depends on the number of ways, not on the length alone.
--
-- `ways` counts the ways in which neighbouring repetitions can divide a text. An item that begins with another character ends the
-- repetition before it and adds no way.

local json_text = require("json_text")
local grammar_text = require("grammar_text")
local grammar_branches = require("grammar_branches")
local grammar_recursion = require("grammar_recursion")
local sets = require("character_sets")
local exceeded = json_text.exceeded
local join, overlap = sets.join, sets.overlap
local byte, sub = string.byte, string.sub
local max = math.max

local grammar_cost = {}

-- Ways in which an unbounded repetition that is itself repeated divides a text, and the turns of it that are counted.
local UNBOUNDED_SPAN, UNBOUNDED_TURNS = 4, 10

local rules, limits = {}, {} -- Rules by name: {alternatives}, with the results for each.

-- Returns the first characters of a sequence, or of alternatives, and whether it may be empty.
local first_of

local function first_of_items(items)
  local first = {}
  for _, item in ipairs(items) do
    local mine, empty = item.first, false
    if item.inner then
      mine, empty = first_of(item.inner)
    elseif item.name then
      local rule = rules[item.name]
      if rule and rule.first == nil then
        rule.first, rule.empty = {}, false
        rule.first, rule.empty = first_of(rule.alternatives)
      end
      mine, empty = rule and rule.first or {}, rule and rule.empty
    end
    first = join(first, mine)
    if not (empty or item.least == 0) then
      return first, false
    end
  end
  return first, true
end

function first_of(alternatives)
  local first, empty = {}, false
  for _, items in ipairs(alternatives) do
    local mine, may = first_of_items(items)
    first, empty = join(first, mine), empty or may
  end
  return first, empty
end

-- Returns the number of literals, classes and repetitions with which the alternatives may begin.
local function starts_of(alternatives)
  local starts = 0
  for _, items in ipairs(alternatives) do
    for _, item in ipairs(items) do
      local mine, empty = 1, item.least == 0
      if item.inner then
        mine = starts_of(item.inner)
      elseif item.name and rules[item.name] then
        local rule = rules[item.name]
        if rule.starts == nil then
          rule.starts = 0
          rule.starts = starts_of(rule.alternatives)
        end
        mine, empty = rule.starts, empty or rule.empty
      end
      starts = starts + mine
      if starts > limits["grammar.alternatives"] then
        return exceeded("grammar.alternatives", starts, true)
      end
      if not empty then
        break
      end
    end
  end
  return starts
end

local ways_of

-- Returns, for one item without its own repetition: its ways, the repetitions that are open at its end, its first characters, and whether
-- it may be empty.
local function parts_of(item)
  if item.inner then
    local ways, open = ways_of(item.inner)
    return ways, open, first_of(item.inner)
  elseif item.name then
    local rule = rules[item.name]
    if not rule then
      return 0, {}, {}, false
    end
    if rule.ways == nil then
      rule.ways, rule.open = 0, {} -- A rule that refers back to itself adds nothing at that place.
      rule.ways, rule.open = ways_of(rule.alternatives)
    end
    return rule.ways, rule.open, rule.first, rule.empty
  end
  return 0, {}, item.first, false
end

-- Returns the ways in which open repetitions divide a text whose next character is in `first`.
local function spans(first, open)
  local sum = 0
  for _, one in ipairs(open) do
    sum = sum + (overlap(first, one.set) and one.span or 0)
  end
  return sum
end

-- Open repetitions above this number count as one, which keeps the time linear.
local MAX_OPEN = 32

local function together(open, combined)
  if #open <= MAX_OPEN then
    return open
  end
  local ways, span, set = 0, 0, {}
  for _, one in ipairs(open) do
    ways, span, set = combined(ways, one.ways), combined(span, one.span), join(set, one.set)
  end
  return { { ways = ways, span = span, set = set } }
end

local function plus(one, other)
  return one + other
end

-- Returns, for a sequence: the largest number of ways of neighbouring repetitions, and the repetitions that are open at its end.
-- An item whose first characters are not among those of an open repetition closes that repetition.
local function ways_of_items(items)
  local most, open = 0, {} -- Open repetitions: {ways, span, set}.
  for _, item in ipairs(items) do
    local ways, ending, first, empty = parts_of(item)
    if item.repeats then
      local least, highest = item.least, item.most
      local varies = least ~= highest
      local span = highest and highest - least or UNBOUNDED_SPAN
      local inside = spans(first, ending)
      if inside > 0 and highest == 1 then
        span = span + inside
      elseif inside > 0 then
        span = inside * (highest or max(UNBOUNDED_TURNS, least))
        ways = max(ways, span)
      elseif varies then
        ways = max(ways, 1)
      end
      empty = empty or least == 0
      if varies or inside > 0 then
        local set = join({}, first)
        for _, one in ipairs(ending) do
          set = join(set, one.set)
        end
        ending = { { ways = ways, span = span, set = set } }
      end
    end
    local still, beside = {}, 0
    for _, one in ipairs(open) do
      if overlap(first, one.set) then
        beside = beside + one.ways
        still[#still + 1] = one
      elseif empty then
        still[#still + 1] = one
      end
    end
    most = max(most, beside + ways)
    if most > limits["grammar.ways"] then
      return exceeded("grammar.ways", most, true)
    end
    for _, one in ipairs(ending) do
      still[#still + 1] = one
    end
    open = together(still, plus)
  end
  return most, open
end

-- Returns the literal text with which a list of items begins, and whether the list has nothing else.
local function beginning_of(items)
  local parts = {}
  for index, item in ipairs(items) do
    if not item.text or item.repeats then
      return table.concat(parts), false
    end
    parts[index] = item.text
    if index == MAX_OPEN then
      break
    end
  end
  return table.concat(parts), #parts == #items
end

local function without_others(set)
  if set ~= "any" and set[128] then
    set = join({}, set)
    set[128] = nil
  end
  return set
end

-- Returns whether an alternative and an earlier one can read the same text, judged by their beginnings; and, if both are literals,
-- the characters with which the longer one continues.
local function alike(one, other)
  if one.text == "" or other.text == "" then
    -- These sets do not distinguish characters beyond ASCII, and grammars of languages have several classes of them: such classes count as
    -- different.
    return overlap(without_others(one.first), other.first)
  end
  local shorter, longer = one, other
  if #shorter.text > #longer.text then
    shorter, longer = other, one
  end
  if sub(longer.text, 1, #shorter.text) ~= shorter.text then
    return false
  elseif one.whole and other.whole and #shorter.text < #longer.text then
    return false, { [byte(longer.text, #shorter.text + 1)] = true }
  end
  return true
end

-- Returns the ways of alternatives: those of the costliest one, plus one for each alternative that reads the same text as another. If the
-- alternatives are repeated, each turn can be read in as many ways.
function ways_of(alternatives)
  if #alternatives > limits["grammar.alternatives"] then
    return exceeded("grammar.alternatives", #alternatives)
  end
  local most, open, same, earlier = 0, {}, 0, {}
  for index, items in ipairs(alternatives) do
    local ways, mine = ways_of_items(items)
    most = max(most, ways)
    for _, one in ipairs(mine) do
      open[#open + 1] = one
    end
    if #alternatives > 1 then
      local this = { first = first_of_items(items) }
      this.text, this.whole = beginning_of(items)
      local counted = false
      for _, other in ipairs(earlier) do
        local is_alike, goes_on = alike(this, other)
        if is_alike and not counted then
          counted = true
          open[#open + 1] = { ways = 0, span = 2, set = join({}, this.first) }
        elseif goes_on then
          open[#open + 1] = { ways = 0, span = 2, set = goes_on }
        end
      end
      same = same + (counted and 1 or 0)
      earlier[index] = this
    end
  end
  if most + same > limits["grammar.ways"] then
    return exceeded("grammar.ways", most + same, true)
  end
  return most + same, together(open, max)
end

-- Counts a pattern of a JSON schema. `totals` holds the sums over the body. Returns the number of ways to continue at its beginning.
function grammar_cost.pattern(pattern, most, totals)
  rules, limits = {}, most
  local ways = 1
  for _, alternatives in ipairs(grammar_text.pattern(pattern, most, totals)) do
    grammar_recursion.check_pattern(alternatives)
    ways = max(ways, starts_of(alternatives), (ways_of(alternatives)))
  end
  return ways
end

-- Counts a whole grammar.
function grammar_cost.check(grammar, most)
  rules, limits = grammar_text.rules(grammar, most), most
  grammar_recursion.check(rules)
  for _, rule in pairs(rules) do
    rule.first, rule.empty = first_of(rule.alternatives)
  end
  for _, rule in pairs(rules) do
    starts_of(rule.alternatives)
    ways_of(rule.alternatives)
  end
  grammar_branches.check(rules, most, first_of_items)
end

return grammar_cost
