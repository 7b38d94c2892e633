"""`helm test`: asks the mesh through Envoy for its health, for a token and for models, and for a chat if a server is ready."""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request

HOST, PASSWORD = os.environ["MESH_HOST"], os.environ["LLAMESH_ADMIN_PASSWORD"]
CERTIFICATE = os.environ.get("MESH_CERTIFICATE")
REMEDIES = {
    "/auth/token": "the first password of admin in the Secret was changed since: this test can only log in with that one",
}


def context():
    """Trust the certificate of the front door itself, whatever its names are."""
    if not CERTIFICATE:
        return None
    made = ssl.create_default_context(cafile=CERTIFICATE)
    made.check_hostname = False
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return made


def ask(port, path, body=None, token="", seconds=30):
    """Return the answer to a request; end with the words of a refusal."""
    url = f"{'https' if CERTIFICATE else 'http'}://{HOST}:{port}{path}"
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds, context=context()) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.code} {error.read().decode(errors='replace')}\n{REMEDIES.get(path, '')}")
    except OSError as error:
        sys.exit(f"{url}: {error}")


health = ask(8200, "/health")
print("health:", health["status"])
if health["status"] != "HEALTH_STATE_OK":
    sys.exit(json.dumps(health, indent=2))
token = ask(8200, "/auth/token", {"username": "admin", "password": PASSWORD})["access_token"]
print("models:", *[model["model_uuid"] for model in ask(8200, "/models", token=token)["models"]])
ready = [server for server in ask(8200, "/status", token=token)["servers"] if server.get("ready_replicas")]
if not ready:
    print("chat: no server is ready, so none was asked")
    sys.exit()
name = ready[0]["model_name"]
chat = {"model": name, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16}
answer = ask(8080, "/v1/chat/completions", chat, token, 120)
print(f"chat with {name}:", answer["choices"][0]["message"]["content"])
