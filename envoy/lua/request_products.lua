-- Multiplies numbers of several fields of a request and checks the limits of the products.

local max = math.max

local request_products = {}

-- The largest number by its meaning, and the number of prompts of the body.
local largest, prompts = {}, 0

function request_products.open()
  largest, prompts = {}, 0
end

function request_products.keep(name, number)
  largest[name] = max(largest[name] or 0, number)
end

function request_products.keep_prompts(number)
  prompts = max(prompts, number)
end

function request_products.prompts()
  return max(prompts, 1)
end

-- Returns the number of answers to all prompts together.
function request_products.answers()
  return max(largest.choices or 1, 1) * request_products.prompts()
end

-- Returns the field, the limit and the amount of a product that exceeds its limit; nothing if no product does.
-- `context`: the tokens of the largest context of any server.
function request_products.excess(limits, context)
  local generations = request_products.answers()
  if generations > limits.generations then
    return "n", "generations", generations
  end
  -- With `logprobs: true` the engine lists `top_logprobs` tokens, or its default number.
  local listed = largest.listed and (largest.top or largest.listed) or 0
  if listed > limits.probabilities then
    return "logprobs", "probabilities", listed
  end
  local alternatives = max(largest.probabilities or 0, listed) * generations
  local tokens = largest.tokens or math.huge
  alternatives = alternatives > 0 and alternatives * (tokens < math.huge and tokens or context) or 0
  if alternatives > limits["probabilities.total"] then
    return "logprobs", "probabilities.total", ("%d"):format(alternatives)
  end
end

return request_products
