-- Finds the parts that a schema refers to by name: targets of references, and lists of required properties.

local schema_text = require("schema_text")

local is_object, is_list = schema_text.is_object, schema_text.is_list
local sub, gmatch, match = string.sub, string.gmatch, string.match

local schema_document = {}

local root
-- The names of each list of required properties: one list may be read at several places.
local named = {}

-- Starts a schema.
function schema_document.open(whole)
  root, named = whole, {}
end

-- Returns the target of a reference as the conversion finds it: names may be empty, and an index is the number at the beginning of a name.
function schema_document.target_of(reference)
  if type(reference) ~= "string" or sub(reference, 1, 2) ~= "#/" then
    return nil
  end
  local found = root
  for step in gmatch(sub(reference, 2), "/([^/]*)") do
    if is_object(found) then
      found = found.of[step]
    elseif is_list(found) and match(step, "^%d+$") then
      found = found[tonumber(step) + 1]
    else
      found = nil
    end
    if found == nil then
      error({ code = "invalid_value", message = "has a reference that leads to nothing, or is not written in names and plain numbers." }, 0)
    end
  end
  return found
end

local NONE = {}

-- Returns the set of the names in a list.
function schema_document.names_in(list)
  if not is_list(list) then
    return NONE
  end
  local names = named[list]
  if not names then
    names = {}
    for _, name in ipairs(list) do
      names[name] = true
    end
    named[list] = names
  end
  return names
end

return schema_document
