-- Returns the key of a table of names that is nearest to a misspelt name; nil if none is near.
--
-- Near is an edit distance of at most a third of the name. Names above MAX_NAME bytes have no nearest, which bounds the work.

local MAX_NAME = 40

-- Number of bytes that must be inserted, removed or replaced to make one text the other; case does not count.
local function distance(one, other)
  one, other = one:lower(), other:lower()
  local row = {}
  for column = 0, #other do row[column] = column end
  for line = 1, #one do
    local diagonal = row[0]
    row[0] = line
    for column = 1, #other do
      local replaced = diagonal + (one:byte(line) == other:byte(column) and 0 or 1)
      diagonal = row[column]
      row[column] = math.min(replaced, row[column] + 1, row[column - 1] + 1)
    end
  end
  return row[#other]
end

return function(name, names)
  local nearest, least = nil, math.floor(#name / 3) + 1
  if #name > MAX_NAME then return nil end
  for known in pairs(names) do
    local steps = #known <= MAX_NAME and distance(name, known) or least
    -- `pairs` has no order: of two names at the same distance, the first in the alphabet counts.
    if steps < least or (nearest and steps == least and known < nearest) then
      nearest, least = known, steps
    end
  end
  return nearest
end
