"""`llamesh env`: the mesh that commands use, as variables for a shell and for programs: curl, OpenAI SDKs, scripts."""

from __future__ import annotations

import json
import shlex
from typing import Literal

from llamesh.cli.connection import meant
from llamesh.cli.inference import inference_address
from llamesh.cli.printing import say


def env(*, output: Literal["shell", "json"] = "shell") -> None:
    """Print the addresses and the token of the mesh that commands use: eval "$(llamesh env)".

    Parameters
    ----------
    output
        shell: lines that export the variables. json: one object.
    """
    profile = meant()
    inference = inference_address(profile)
    variables = {
        "LLAMESH_URL": profile.url,
        "LLAMESH_INFERENCE_URL": inference,
        "LLAMESH_TOKEN": profile.token,
        "OPENAI_BASE_URL": f"{inference}/v1",
        # OpenAI SDKs refuse to start without a key; the mesh may take requests without one.
        "OPENAI_API_KEY": profile.token or "not-needed",
    }
    if output == "json":
        say(json.dumps(variables, indent=2))
        return
    for name, value in variables.items():
        say(f"export {name}={shlex.quote(value)}" if value else f"unset {name}")
