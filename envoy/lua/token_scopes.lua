-- Decides what the scopes of a verified token allow for inference. A scope is `infer:` and a model's name or a server's id; `infer:*` is
-- all of them.

local quoted = require("quotation")

-- Models that a refusal names, and bytes of each.
local SHOWN, MAX_SHOWN = 8, 128
-- The ids of keys, which are in `jti`, begin so. Other tokens were given at a login.
local KEY = "^key_"

local token_scopes = {}

function token_scopes.cover(claims, wanted)
  for _, scope in ipairs(claims.scopes or {}) do
    if scope == "infer:*" or scope == wanted then return true end
  end
  return false
end

-- The scopes for inference as one header's value, for the waker, which lists the models: separated by commas, odd characters as %XX.
function token_scopes.header(claims)
  if not claims then return "infer:*" end -- anonymous inference covers every model
  local encoded = {}
  for _, scope in ipairs(claims.scopes or {}) do
    if scope:find("^infer:") then
      encoded[#encoded + 1] = scope:gsub("[^%w._:/@+*-]", function(character) return ("%%%02X"):format(character:byte()) end)
    end
  end
  return table.concat(encoded, ",")
end

-- The models of a token in words, bounded.
local function granted(claims)
  local shown, more = {}, 0
  for _, scope in ipairs(claims.scopes or {}) do
    local model = scope:match("^infer:(.*)$")
    if model and #shown < SHOWN then
      shown[#shown + 1] = quoted(model:sub(1, MAX_SHOWN))
    elseif model then
      more = more + 1
    end
  end
  if #shown == 0 then return "no model" end
  return table.concat(shown, ", ") .. (more > 0 and (" and %d more"):format(more) or "")
end

-- The code and the message for a token that does not cover `wanted`. A login token has all models that the user's contract grants, so what
-- it lacks the contract did not grant at the login. A key may have fewer scopes than its contract.
function token_scopes.refusal(claims, wanted)
  local contract = claims.contract or ""
  if contract ~= "" and not (claims.jti or ""):find(KEY) then
    return "model_not_in_contract", ("The contract %s does not grant %s; this login may use %s. If the contract was changed since, log in again."):format(
      quoted(contract:sub(1, MAX_SHOWN)), quoted(wanted:gsub("^infer:", "")), granted(claims)
    )
  end
  return "scope_missing", ("The token lacks the scope %s; it may use %s."):format(quoted(wanted), granted(claims))
end

return token_scopes
