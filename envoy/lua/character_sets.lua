-- Sets of characters: tables with ASCII codes as keys, 128 for all characters beyond ASCII, or "any".

local character_sets = {}

-- Adds the characters of `more` to `into`, and returns the sum.
function character_sets.join(into, more)
  if into == "any" or more == "any" then
    return "any"
  end
  for code in pairs(more) do
    into[code] = true
  end
  return into
end

-- Returns whether two sets have a character in common.
function character_sets.overlap(one, other)
  if one == "any" or other == "any" then
    return next(one == "any" and (other == "any" and { 1 } or other) or one) ~= nil
  end
  for code in pairs(one) do
    if other[code] then
      return true
    end
  end
  return false
end

return character_sets
