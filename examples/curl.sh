#!/bin/sh
# Log in, look, ask: curl and nothing else. sh examples/curl.sh MODEL
set -eu
management=${LLAMESH_URL:-http://localhost:8200}
inference=${LLAMESH_INFERENCE_URL:-http://localhost:8080}

token=$(curl -sS --fail-with-body "$management/auth/token" -H "Content-Type: application/json" \
  -d '{"username": "admin", "password": "admin"}' | sed 's/.*"access_token":"\([^"]*\)".*/\1/')
curl -sS --fail-with-body "$management/status" -H "Authorization: Bearer $token"
echo
curl -sS --fail-with-body "$inference/v1/chat/completions" -H "Content-Type: application/json" \
  -d "{\"model\": \"$1\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}], \"max_tokens\": 64}"
echo
