-- The shapes of the table of limits (envoy/limits.yaml), assembled once. The path of a request determines the shape of its body.

local table_of_limits = require("limits_table")
local match = string.match

local request_shapes = {}

local ANYTHING = { any = true }

-- The shapes by name, with all references to named shapes resolved.
local shapes = {}
local fields_of
local function shape_of(given)
  if type(given) == "string" then
    if not shapes[given] then
      local made = {}
      shapes[given] = made
      for key, part in pairs(shape_of(table_of_limits.shapes[given])) do
        made[key] = part
      end
    end
    return shapes[given]
  end
  local shape = {}
  for kind, rule in pairs(given) do
    shape[kind] = rule
  end
  if given.list then
    shape.list = {
      items = given.list.items,
      total = given.list.total,
      except_numbers = given.list.except_numbers,
      distinct = given.list.distinct,
      of = shape_of(given.list.of),
    }
  end
  if given.object then
    shape.object = {
      entries = given.object.entries, keys = given.object.keys, fields = fields_of(given.object.fields or {}), tag = given.object.tag,
      others = given.object.others and shape_of(given.object.others) or ANYTHING,
    }
    -- The fields of each text of the tag, and all of these names.
    if given.object.tag then
      shape.object.tagged, shape.object.waiting = {}, {}
      for text, fields in pairs(given.object.tagged) do
        shape.object.tagged[text] = fields_of(fields)
        for name in pairs(fields) do
          shape.object.waiting[name] = true
        end
      end
    end
  end
  return shape
end

function fields_of(given)
  local fields = {}
  for name, field in pairs(given) do
    fields[name] = shape_of(field)
  end
  return fields
end

local bodies = fields_of(table_of_limits.paths)

-- Returns the shape of a body at a path. Raises an error for a path without one: an unchecked body must not pass.
function request_shapes.of(path)
  local shape = bodies[match(path, "^/[%w-]+/v1/([%w/_]+)") or match(path, "^/v1/([%w/_]+)")]
  if not shape then
    error("no shape for the bodies at " .. path)
  end
  return shape
end

return request_shapes
