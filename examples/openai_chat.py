"""Chat with the official OpenAI client: nothing but the address is llamesh's. `python examples/openai_chat.py MODEL`."""

import os
import sys

from openai import OpenAI

address = os.environ.get("LLAMESH_INFERENCE_URL", "http://localhost:8080")
client = OpenAI(base_url=f"{address}/v1", api_key="not-needed")
question = "Hello! What is the capital of France?"
stream = client.chat.completions.create(
    model=sys.argv[1], messages=[{"role": "user", "content": question}], temperature=0, max_tokens=64, stream=True
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
