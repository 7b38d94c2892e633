-- Takes the body off a request, once it is there in full.

function envoy_on_request(request)
  local body = request:body()
  if body then
    body:setBytes("")
    request:headers():replace("content-length", "0")
  end
end
