"""Chat with the official OpenAI client: nothing but the address is llamesh's. `python examples/openai_chat.py MODEL`."""

import json
import subprocess
import sys

from openai import OpenAI

if len(sys.argv) != 2:
    sys.exit("usage: python examples/openai_chat.py MODEL")
# The mesh that commands use: of this machine, of the login, or LLAMESH_URL.
mesh = json.loads(subprocess.check_output(["llamesh", "env", "--output", "json"]))
client = OpenAI(base_url=mesh["OPENAI_BASE_URL"], api_key=mesh["OPENAI_API_KEY"])
question = "Hello! What is the capital of France?"
stream = client.chat.completions.create(
    model=sys.argv[1], messages=[{"role": "user", "content": question}], temperature=0, max_tokens=64, stream=True
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
