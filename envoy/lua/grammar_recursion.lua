-- Refuses endless recursion of llama.cpp's parser: a rule that refers to itself before it has read a character, and an unbounded repetition
-- of an item that may be empty, which has the same effect. llama.cpp checks for it too, but finds only rules with an empty alternative, not
-- rules that are empty because of other rules.

local grammar_recursion = {}

-- Rules of the current grammar that may be empty.
local may_be_empty = {}

local alternatives_may_be_empty

-- Returns whether an item may be empty, without its own repetition.
local function body_may_be_empty(item)
  if item.inner then
    return alternatives_may_be_empty(item.inner)
  end
  return item.name ~= nil and may_be_empty[item.name] or false
end

function alternatives_may_be_empty(alternatives)
  for _, items in ipairs(alternatives) do
    local all = true
    for _, item in ipairs(items) do
      all = all and (item.least == 0 or body_may_be_empty(item))
    end
    if all then
      return true
    end
  end
  return false
end

local function refuse()
  error({ code = "invalid_value", message = "leads back to its beginning before it has read a character: it never ends." }, 0)
end

-- Calls found(name) for each rule with which the alternatives may begin. Refuses every endless repetition that it passes.
local function walk(alternatives, found)
  for _, items in ipairs(alternatives) do
    local begins = found
    for _, item in ipairs(items) do
      local empty = body_may_be_empty(item)
      if item.repeats and not item.most and empty then
        return refuse()
      end
      if item.inner then
        walk(item.inner, begins)
      elseif item.name and begins then
        begins(item.name)
      end
      if item.least ~= 0 and not empty then
        begins = nil
      end
    end
  end
end

local OPEN, DONE = 1, 2

-- Checks the rules of a grammar: {alternatives} by name.
function grammar_recursion.check(rules)
  may_be_empty = {}
  local changed = true
  while changed do
    changed = false
    for name, rule in pairs(rules) do
      if not may_be_empty[name] and alternatives_may_be_empty(rule.alternatives) then
        may_be_empty[name], changed = true, true
      end
    end
  end
  local beginnings = {}
  for name, rule in pairs(rules) do
    local names = {}
    walk(rule.alternatives, function(first)
      names[#names + 1] = first
    end)
    beginnings[name] = names
  end
  local state = {}
  local function follow(name)
    state[name] = OPEN
    for _, first in ipairs(beginnings[name] or {}) do
      if state[first] == OPEN then
        return refuse()
      elseif not state[first] then
        follow(first)
      end
    end
    state[name] = DONE
  end
  for name in pairs(rules) do
    if not state[name] then
      follow(name)
    end
  end
end

-- Checks the alternatives of a pattern, which has no rules.
function grammar_recursion.check_pattern(alternatives)
  may_be_empty = {}
  walk(alternatives, nil)
end

return grammar_recursion
