"""Fetch a model, serve it, ask it, stop it. `llamesh login` once, then `python examples/sdk.py ADDRESS`."""

import sys

from llamesh import Client, errors

if len(sys.argv) != 2:
    sys.exit("usage: python examples/sdk.py ADDRESS (or the path of a file below LLAMESH_HOME/import)")
with Client() as mesh:  # LLAMESH_URL and LLAMESH_TOKEN, else the mesh that `llamesh login` knows
    model = mesh.models.pull(sys.argv[1], uuid="example", name="example").wait(
        on_progress=lambda now: print(f"{now.bytes_done} of {now.bytes_total} bytes")
    )
    try:
        server = mesh.servers.serve(model, ctx_size=2048, idle_sleep=600)
    except errors.DoesNotFit as refusal:
        sys.exit(f"{refusal} ({refusal.needed_bytes} > {refusal.free_bytes}); {refusal.remedy}")
    server = mesh.servers.wait_ready(server)
    print([item.model_name for item in mesh.servers.list()])
    reply = mesh.openai(server).chat.completions.create(
        model=server.model_name, messages=[{"role": "user", "content": "Hi!"}], max_tokens=64
    )
    print(reply.choices[0].message.content)
    mesh.servers.stop(server)
