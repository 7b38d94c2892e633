-- Budget of the conversion of schemas: sums over the body of a request, each with its limit.

local json_text = require("json_text")

local schema_budget = {}

local limits, sums

function schema_budget.add(name, amount)
  local sum = (sums[name] or 0) + amount
  sums[name] = sum
  if sum > limits[name] then
    return json_text.exceeded(name, sum, true)
  end
end

-- Starts a schema. `totals` has the sums over the body.
function schema_budget.open(most, totals)
  limits, sums = most, totals
end

return schema_budget
