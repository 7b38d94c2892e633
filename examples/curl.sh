#!/bin/sh
# Look at the mesh and ask a model: curl and nothing else. `llamesh login` once, then: sh examples/curl.sh MODEL
set -eu
variables=$(llamesh env --manage) # The mesh that commands use: of this machine, of the login, or LLAMESH_URL.
eval "$variables"
: "${LLAMESH_TOKEN:?is not set: llamesh login}"

# curl reads the token from a pipe: on its command line `ps` would show it to every user of this machine.
ask() { token=$1; shift; printf 'Authorization: Bearer %s\n' "$token" | curl -sS --fail-with-body -H @- "$@"; }

ask "$LLAMESH_TOKEN" "$LLAMESH_URL/status"
echo
ask "$OPENAI_API_KEY" "$LLAMESH_INFERENCE_URL/v1/chat/completions" -H "Content-Type: application/json" \
  -d "{\"model\": \"$1\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}], \"max_tokens\": 64}"
echo
