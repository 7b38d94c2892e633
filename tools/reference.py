"""Generate the pages of docs/reference from the code: settings, errors, parameters, options, limits, exit codes. `make docs`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import grpc
from pydantic import AliasChoices
from pydantic_core import PydanticUndefined

from llamesh.cli.failure import BY_CODE, LACKS_A_PART, MEANINGS, REFUSALS, Exit
from llamesh.kit import limits
from llamesh.kit.config import Settings
from llamesh.kit.errors import name_of, spec_of
from llamesh.runtime_parameters import about, all_parameters
from llamesh.v1 import error_reason_pb2
from services.contract.flag_parser import bounds
from services.contract.llama_options import build, table
from tools.comments import comments_of

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
HTTP = {
    3: 400,
    5: 404,
    6: 409,
    7: 403,
    8: 429,
    9: 400,
    10: 409,
    11: 400,
    12: 501,
    13: 500,
    14: 503,
    15: 500,
    16: 401,
    4: 504,
    2: 500,
}
"""HTTP status of each gRPC code in Envoy's transcoder."""


def settings() -> str:
    """Return the page of settings with defaults and meaning."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        name = str(alias.choices[0]) if isinstance(alias, AliasChoices) else str(alias)
        default = "" if field.default in (None, PydanticUndefined, (), {}) else field.default
        if isinstance(default, tuple):
            default = ",".join(default)
        if hasattr(default, "get_secret_value"):
            default = ""
        rows.append(f"| `{name}` | {f'`{default}`' if default not in ('', None) else ''} | {field.description} |")
    head = (
        "# Settings\n\nEnvironment first, then the file (`config.env` in LLAMESH_HOME, or the one that LLAMESH_CONFIG names, "
        "lines `NAME=value`), then the default. An empty value counts as unset. Lists are separated by commas. A line of the file that is "
        "not a setting is an error at the start; `llamesh up` and `llamesh doctor` warn of a variable `LLAMESH_...` that is not a setting. "
        "`LLAMESH_HOME`, `LLAMESH_CONFIG`, `LLAMESH_CA` and `ENVOY_BIN` are read from the environment only.\n\n"
    )
    return head + "\n".join(rows) + "\n"


def errors() -> str:
    """Return the page of error reasons with codes and remedies."""
    rows = ["| reason | gRPC | HTTP | meaning | what to do |", "|---|---|---|---|---|"]
    comments = comments_of("error_reason.proto")
    for value in error_reason_pb2.ErrorReason.DESCRIPTOR.values[1:]:
        spec = spec_of(value.number)
        code = next(item for item in grpc.StatusCode if item.value[0] == spec.code)
        row = (f"`{name_of(value.number)}`", code.name, HTTP[spec.code], comments[value.name], spec.remedy)
        rows.append(f"| {' | '.join(map(str, row))} |")
    head = (
        "# Errors\n\nEvery error of the management API is a `google.rpc.Status` with one `ErrorInfo` (domain `llamesh`, a reason of this "
        "list, every variable of the message as metadata), the remedy as `LocalizedMessage`, `BadRequest` if fields are invalid, and "
        "`RetryInfo` if a retry helps. On the inference port, errors have OpenAI's format.\n\n"
    )
    return head + "\n".join(rows) + "\n"


def parameters() -> str:
    """Return the page of runtime parameters."""
    rows = ["| parameter | other spellings | values | meaning |", "|---|---|---|---|"]
    for name, parameter in all_parameters().items():
        others = [*parameter.aliases, *parameter.negatives, *parameter.implied]
        spelled = ", ".join(f"`{other}`" for other in others)
        values = "" if parameter.switch else bounds(parameter).removeprefix("must be ")
        rows.append(f"| `{parameter.flag}` | {spelled} | {values} | {about()[name]} |")
    head = (
        "# Runtime parameters\n\nThe only parameters that are allowed: in `runtime_params` as flags in one string, or in "
        "`parameters` typed, with the names of `RuntimeParameters` (the canonical flag in snake_case). In the string, blanks are spaces, "
        "tabs and line ends; quote a value with blanks or quotes. llama-server's other options are in "
        "[llama-server-options.md](llama-server-options.md).\n\n"
    )
    return head + "\n".join(rows) + "\n"


def llama_options() -> str:
    """Return the page of llama-server's options and their treatment."""
    rows = ["| option | decision | why, and what to use |", "|---|---|---|"]
    for parameter in all_parameters().values():
        flags = [parameter.flag, *parameter.aliases, *parameter.negatives, *parameter.implied]
        rows.append(f"| {_flags(flags)} | parameter | [{parameter.name}](parameters.md) |")
    for option in table():
        instead = f"; use `{option.instead}`" if option.instead else ""
        rows.append(f"| {_flags(option.flags)} | {option.treatment.value} | {option.reason}{instead} |")
    head = (
        f"# The options of llama-server\n\nEach option of llama.cpp build {build()}, with its treatment. `parameter`: allowed for "
        "a server. `set`: llamesh sets it, or keeps llama.cpp's default on purpose. `refused`: not allowed. `meaningless`: without effect "
        "for an engine of a mesh. An error for one of the last three gives the same reason.\n\n"
    )
    return head + "\n".join(rows) + "\n"


def _flags(flags: Iterable[str]) -> str:
    return ", ".join(f"`{flag}`" for flag in flags)


def request_limits() -> str:
    """Return the page of limits of inference requests with defaults and bounds."""
    rows = ["| limit | default | from | to | what it counts |", "|---|---|---|---|---|"]
    for name, limit in limits.table().items():
        rows.append(f"| `{name}` | {limit.default} | {limit.least} | {limit.most} | {limit.about} |")
    head = (
        "# Limits of an inference request\n\nThe front door refuses a request that exceeds one with 400 and code "
        "`limit_exceeded`; `param` is the "
        "field, the message has the limit, its number, what was sent and the property of a schema. Bytes of a text are those that it says, "
        "however it is written. "
        "`LLAMESH_INFERENCE_LIMITS=name=value,...` changes them between the two bounds; what a higher one costs is in "
        "[ADR 10](../adr/0010-the-front-door-bounds-cost.md).\n\n"
    )
    return head + "\n".join(rows) + "\n"


def exit_codes() -> str:
    """Return the page of exit codes with their meaning and the errors that give them."""
    rows = ["| code | errors of a mesh | meaning |", "|---|---|---|"]
    for code in Exit:
        errors_of = [name for name, given in BY_CODE.items() if given is code]
        if code is Exit.REFUSED:
            errors_of += sorted(REFUSALS)
        if code is Exit.UNAVAILABLE:
            errors_of += sorted(LACKS_A_PART)
        rows.append(f"| `{code.value}` | {', '.join(f'`{name}`' for name in errors_of)} | {MEANINGS[code]} |")
    head = (
        "# Exit codes\n\nEvery command of `llamesh` ends with one of these codes. Data goes to standard output, everything else to "
        "standard error: `error: CAUSE`, then `hint: WHAT TO DO`. An error of a mesh gives the exit code of its gRPC code, "
        "or of its reason ([errors](errors.md)), which comes first.\n\n"
    )
    foot = (
        "\nCommands that use a code for an answer: `llamesh diff` ends with 1 if the mesh differs from the files, and its failures "
        "have codes from 2. `llamesh doctor` ends with 1 if it has found a problem. `llamesh up` ends with 2 if a person must act, "
        "with 1 if a later start may succeed. `llamesh wait` ends with 6 if its time is over. A command that SIGTERM or SIGHUP ends "
        "dies of the signal: a shell shows 143 or 129.\n\n```sh\n"
        "llamesh wait words --timeout 5m\n"
        "case $? in\n"
        "  0) echo ready ;;\n"
        "  3) llamesh serve words --wait ;;\n"
        "  4) llamesh login ;;\n"
        "  6) echo 'not yet' ;;\n"
        "esac\n```\n"
    )
    return head + "\n".join(rows) + "\n" + foot


PAGES = {
    "settings.md": settings,
    "errors.md": errors,
    "parameters.md": parameters,
    "llama-server-options.md": llama_options,
    "limits.md": request_limits,
    "exit-codes.md": exit_codes,
}


def main() -> None:
    """Write the pages; with --check, exit 1 if one differs from the code."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        page = REFERENCE / name
        if "--check" in sys.argv:
            if not page.exists() or page.read_text(encoding="utf-8") != make():
                sys.exit(f"{page.name} differs from the code: run `make docs`")
        else:
            page.write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
