-- Finds rules of a grammar that refer to themselves in more than one way: their cost doubles with each recursion.

local exceeded = require("json_text").exceeded
local sets = require("character_sets")
local join, overlap = sets.join, sets.overlap

local grammar_branches = {}

local rules, limits, first_of_items

-- Calls seen(item) for each item of the alternatives, including items in groups.
local function each_item(alternatives, seen)
  for _, items in ipairs(alternatives) do
    for _, item in ipairs(items) do
      seen(item)
      if item.inner then
        each_item(item.inner, seen)
      end
    end
  end
end


-- Gives each rule the number of its group: the rules that refer to each other. Marks the rules that refer back to themselves (Tarjan's
-- algorithm).
local function find_circles()
  local count, stack = 0, {}
  local function visit(name, rule)
    count = count + 1
    rule.order, rule.lowest = count, count
    stack[#stack + 1] = name
    rule.waits = true
    each_item(rule.alternatives, function(item)
      local other = item.name and rules[item.name]
      if other then
        if other == rule then
          rule.circular = true
        end
        if not other.order then
          visit(item.name, other)
          rule.lowest = math.min(rule.lowest, other.lowest)
        elseif other.waits then
          rule.lowest = math.min(rule.lowest, other.order)
        end
      end
    end)
    if rule.lowest == rule.order then
      local alone = stack[#stack] == name
      repeat
        local member = rules[table.remove(stack)]
        member.waits, member.circle = false, rule.order
        member.circular = member.circular or not alone
      until member == rule
    end
  end
  for name, rule in pairs(rules) do
    if not rule.order then
      visit(name, rule)
    end
  end
end

-- Counts the alternatives that refer back to the rule's circle and begin with the same character, and the references to the circle that
-- are side by side. Both give the engine more than one way to continue. `begins_by`: first characters of the rules of the circle.
local function check_branches(alternatives, circle, begins_by)
  local function leads(item)
    return item.name and rules[item.name] and rules[item.name].circle == circle
  end
  local function separates(item)
    return item and item.first and not item.repeats and not overlap(item.first, begins_by)
  end
  -- Returns whether a rule of the circle ends with a character with which no rule begins: then the engine can tell where a turn ends.
  local function closes(name)
    local rule = rules[name]
    if rule.closes == nil then
      rule.closes = true
      for _, items in ipairs(rule.alternatives) do
        local back = false
        each_item({ items }, function(item)
          back = back or leads(item)
        end)
        rule.closes = rule.closes and (not back or separates(items[#items]) or false)
      end
    end
    return rule.closes
  end
  local firsts = {}
  for _, items in ipairs(alternatives) do
    local leads_back, side_by_side, before = false, 1, false
    for _, item in ipairs(items) do
      local back, distinct = leads(item), false
      if back then
        distinct = closes(item.name)
      elseif item.inner then
        local closed = true
        each_item(item.inner, function(inner)
          if leads(inner) then
            back = true
            closed = closed and closes(inner.name)
          end
        end)
        check_branches(item.inner, circle, begins_by)
        distinct = true
        for _, inner in ipairs(item.inner) do
          distinct = distinct and separates(inner[1])
        end
        distinct = distinct or closed
      end
      leads_back = leads_back or back
      if back then
        side_by_side = before and not distinct and side_by_side + 1 or 1
        if item.repeats and item.most ~= 1 and not distinct then
          side_by_side = side_by_side + (item.most or 10) - 1
        end
        if side_by_side > limits["grammar.branches"] then
          return exceeded("grammar.branches", side_by_side, true)
        end
      end
      before = back or (before and not separates(item))
    end
    if leads_back then
      firsts[#firsts + 1] = first_of_items(items)
    end
  end
  for index, one in ipairs(firsts) do
    local alike = 1
    for other = 1, index - 1 do
      alike = alike + (overlap(one, firsts[other]) and 1 or 0)
    end
    if alike > limits["grammar.branches"] then
      return exceeded("grammar.branches", alike, true)
    end
  end
end

-- Checks the rules. Their first characters are known (`first`). `first_of` returns the first characters of a list of items.
function grammar_branches.check(read, most, first_of)
  rules, limits, first_of_items = read, most, first_of
  find_circles()
  local begins_by = {}
  for _, rule in pairs(rules) do
    begins_by[rule.circle] = join(begins_by[rule.circle] or {}, rule.first)
  end
  for _, rule in pairs(rules) do
    if rule.circular then
      check_branches(rule.alternatives, rule.circle, begins_by[rule.circle])
    end
  end
end

return grammar_branches
