#!/bin/sh
# Look at the mesh and ask a model: curl and nothing else. `llamesh login` once, then: sh examples/curl.sh MODEL
set -eu
variables=$(llamesh env) # The mesh that commands use: of this machine, of the login, or LLAMESH_URL.
eval "$variables"
: "${LLAMESH_TOKEN:?is not set: llamesh login}"

curl -sS --fail-with-body "$LLAMESH_URL/status" -H "Authorization: Bearer $LLAMESH_TOKEN"
echo
curl -sS --fail-with-body "$LLAMESH_INFERENCE_URL/v1/chat/completions" -H "Authorization: Bearer $LLAMESH_TOKEN" \
  -H "Content-Type: application/json" \
  -d "{\"model\": \"$1\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}], \"max_tokens\": 64}"
echo
