-- Determines the beginning of a value of a schema. Alternatives with the same beginning cost the engine time, because it distinguishes them
-- late.

local schema_document = require("schema_document")
local schema_text = require("schema_text")

local is_object, is_list = schema_text.is_object, schema_text.is_list

local schema_beginnings = {}

local BEGINNINGS = { array = "[", boolean = "t", integer = "0", null = "n", number = "0", string = '"' }

-- Returns the beginning of a value of the schema: its first character, and for an object the name of its first property, with its value if
-- there is only one. `deepest`: maximum references that are followed.
function schema_beginnings.of(schema, steps, deepest)
  if not is_object(schema) or steps > deepest then
    return "any"
  end
  local of = schema.of
  if of["$ref"] ~= nil then
    return schema_beginnings.of(schema_document.target_of(of["$ref"]), steps + 1, deepest)
  elseif is_object(of.properties) then
    local required = schema_document.names_in(of.required)
    for _, name in ipairs(of.properties.names) do
      if required[name] then
        local first = of.properties.of[name]
        local only = is_object(first) and first.of.const
        if only == nil and is_object(first) and is_list(first.of.enum) and #first.of.enum == 1 then
          only = first.of.enum[1]
        end
        return "{" .. name .. "\0" .. ((type(only) == "string" or type(only) == "number") and only or "")
      end
    end
    return "{"
  elseif of.const ~= nil then
    return "=" .. tostring(of.const)
  end
  return BEGINNINGS[of.type] or "["
end

return schema_beginnings
