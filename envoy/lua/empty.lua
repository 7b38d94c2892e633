-- Removes the body of a request after it has arrived completely.

function envoy_on_request(request)
  local body = request:body()
  if body then
    body:setBytes("")
    request:headers():replace("content-length", "0")
  end
end
