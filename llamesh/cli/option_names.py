"""Says a refusal of the mesh with the options of a command: a person typed --ctx-size, not changes.parameters.ctx_size."""

from __future__ import annotations

from collections.abc import Mapping

from llamesh import runtime_parameters
from llamesh.cli.failure import CommandError
from llamesh.cli.refusals import translate
from llamesh.client.errors import MeshError

_OPTIONS = {"model_name": "name", "tolerations": "toleration"}
"""Fields of the contract whose options have another name."""


def in_options(error: MeshError, given: Mapping[str, object]) -> CommandError | None:
    """Return the failure with options in place of fields. `given` are the values of the options by the command's argument. None if the
    refusal names no field."""
    failure = translate(error)
    if failure is None or not error.fields:
        return None
    cause, parts = failure.cause, list(failure.parts)
    for field in sorted((item.field for item in error.fields), key=len, reverse=True):
        option = _option(field, given)
        cause = cause.replace(f"{field}: ", f"{option}: ")
        parts = [part.replace(f"{field}: ", f"{option}: ") for part in parts]
    hint = "--help says what each option may be" if error.reason == "INVALID_FIELD" else failure.hint
    return CommandError(cause, parts=parts, hint=hint, code=failure.code)


def _option(field: str, given: Mapping[str, object]) -> str:
    """The option of a field, with the value that was given; the field itself if no option sets it."""
    name = field.rpartition(".")[2].partition("[")[0]
    name = _OPTIONS.get(name, name)
    if name == "runtime_params":
        return "flags after --"
    if name not in given:
        return field
    parameter = runtime_parameters.all_parameters().get(name)
    option = parameter.flag if parameter else f"--{name.replace('_', '-')}"
    value = given[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return option
    return f"{option} {value:g}" if isinstance(value, float) else f"{option} {value}"
