"""`llamesh env`: the mesh that commands use, as variables for a shell and for programs: curl, OpenAI SDKs, scripts."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from typing import Annotated, Literal

from cyclopts import Parameter

from llamesh.cli.connection import meant
from llamesh.cli.inference import inference_address
from llamesh.cli.printing import say

Form = Annotated[Literal["shell", "json"], Parameter(name=("--output", "-o"))]


def env(*, manage: Annotated[bool, Parameter(negative="")] = False, output: Form = "shell") -> None:
    """Print the addresses of the mesh that commands use, and a key for inference that ends within a day: eval "$(llamesh env)".

    If the mesh has an authority of its own (`llamesh tls init`), the variables also let curl, Python, Node.js and gRPC trust it.

    Parameters
    ----------
    manage
        Include LLAMESH_TOKEN, the token of your login: whoever has it may do all that you may.
    output
        shell: lines that export the variables. json: one object.
    """
    from llamesh.cli.inference_key import inference_key
    from llamesh.cli.trust_variables import trust_variables

    profile = meant()
    inference = inference_address(profile)
    variables = {
        "LLAMESH_URL": profile.url,
        "LLAMESH_INFERENCE_URL": inference,
        **({"LLAMESH_TOKEN": profile.token} if manage else {}),
        "OPENAI_BASE_URL": f"{inference}/v1",
        # OpenAI SDKs refuse to start without a key; the mesh may take requests without one.
        "OPENAI_API_KEY": inference_key(profile.token, datetime.now(UTC)) if profile.token else "not-needed",
        **trust_variables(profile.url),
    }
    if output == "json":
        say(json.dumps(variables, indent=2))
        return
    for name, value in variables.items():
        say(f"export {name}={shlex.quote(value)}" if value else f"unset {name}")
    # Last, because `eval $(llamesh env)` without quotation marks makes one line of all.
    for name in ("LLAMESH_TOKEN", "OPENAI_API_KEY"):
        if words := _end(variables.get(name, "")):
            say(f"# {name} {words}")


def _end(token: str) -> str:
    """Describe when a token expires and how to revoke it earlier; empty if it has no expiry."""
    from llamesh.cli.output import text
    from llamesh.cli.token_claims import end_of, key_id_of

    end, key = end_of(token), key_id_of(token)
    if end is None:
        return ""
    return text(f"ends at {end:%Y-%m-%d %H:%M:%S}Z" + (f"; before: llamesh keys revoke {key}" if key else ""))
