"""Translates errors of the client to errors of the command: text, remedy and exit code."""

from __future__ import annotations

from shlex import quote

from llamesh.cli.connection import (
    NEEDS_TLS,
    UNVERIFIED,
    WITHOUT_TLS,
    clear_text,
    encrypted,
    inference_asked,
    not_llamesh,
    other_service,
    start_hint,
    untrusted,
)
from llamesh.cli.failure import CommandError, Exit, exit_of, unforeseen
from llamesh.client.errors import MeshError
from llamesh.client.names import AmbiguousNameError
from llamesh.client.profile import InferencePortError, NoMeshRunsError, load_profile

_INFERENCE_SHAPE = '{"error":'
"""Beginning of the body of an error at the inference port. No management call has such an answer."""
_NOT_BY_LOGIN = {"WRONG_CREDENTIALS", "USER_DISABLED"}
"""Reasons of refusals that a login cannot cure."""
REMEDIES = {
    "SERVER_NOT_FOUND": "`llamesh status` lists the servers",
    "DOES_NOT_FIT": "lower --ctx-size or --replicas, or free memory: `llamesh sleep SERVER`, `llamesh stop SERVER`",
    "MODEL_CORRUPT": "`llamesh pull --uuid {modelUuid}` downloads it again and repairs it",
    "MODEL_NAME_TAKEN": "take another name",
    "MODEL_IN_USE": "`llamesh stop {servers}` stops what uses it",
    "MODEL_NOT_FOUND": "`llamesh models` lists the models; `llamesh pull` fetches one",
    "DOWNLOAD_CONFLICT": "`llamesh pull --uuid NAME` chooses another id; `llamesh downloads cancel {modelUuid}` ends the first download, "
    "`llamesh rm {modelUuid}` removes its model",
    "DOWNLOAD_NOT_FOUND": "`llamesh downloads` lists the downloads; `llamesh pull` fetches a model",
    "DECISION_NOT_FOUND": "`llamesh why` lists the decisions that are kept",
    "CONTRACT_NOT_FOUND": "`llamesh contracts list` lists the contracts",
    "USER_NOT_FOUND": "`llamesh users list` lists the users",
    "USER_EXISTS": "choose another name; `llamesh users update {username}` changes the user",
    "MODEL_NOT_READY": "`llamesh downloads` shows its download; `llamesh downloads resume {modelUuid}` lets a paused one go on, "
    "`llamesh downloads cancel {modelUuid}` ends it",
    "MODEL_NOT_IN_CONTRACT": "an administrator sets the models of a contract: `llamesh contracts update {contractId} --model NAME`",
    "CONTRACT_IN_USE": "`llamesh users update NAME --contract CONTRACT` gives a user another; `llamesh keys revoke KEY` ends a key",
    "USER_DISABLED": "an administrator enables the user: `llamesh users enable {username}`",
    "QUANT_NOT_CONFIGURED": "start the mesh with `llamesh up --quant`, or set QUANT_SERVICE_URL; `llamesh pull ADDRESS` needs neither",
    "QUANT_JOB_NOT_FOUND": "`llamesh jobs` lists the jobs",
    "QUANT_JOB_NOT_ENDED": "`llamesh jobs cancel {jobId}` ends it first",
    "QUANT_MODEL_EXISTS": "use it, give another --name, or remove it: `llamesh variants rm {modelUuid}`",
    "QUANTISATION_FAILED": "`llamesh jobs show {jobId}` shows the log of the step; `llamesh jobs retry {jobId}` tries again",
    "SOURCE_UNAVAILABLE": "check the address and the network of the mesh's machine, then pull again; or `llamesh pull PATH` of a file",
    "KEY_NOT_FOUND": "`llamesh keys list` lists the keys",
}
"""Commands for remedies of the contract that name REST calls. Braces hold keys of the error's metadata."""
_NO_GRPC = ("Failed parsing HTTP/2", "Received http2 header with status", "invalid value of content-type")
"""Parts of the messages of gRPC if the program at an address does not speak it."""
_FREES_ALIAS = "take another name; `llamesh alias {modelUuid} {alias} --remove` frees it"
"""The remedy if the name is an alias, which the metadata spell as it is stored."""


class NobodyAnswersError(CommandError):
    """Nobody answers at the address of the mesh."""


def translate(error: Exception, url: str = "") -> CommandError | None:
    """Return the command's failure for an error of the client; None for other errors. `url`: the mesh that was called, if known."""
    if isinstance(error, AmbiguousNameError):
        return CommandError(str(error), parts=error.ids, code=Exit.USAGE)
    if not isinstance(error, MeshError):
        return None
    if NEEDS_TLS in error.message and (plain := encrypted(url or load_profile().url)):
        return plain
    if WITHOUT_TLS in error.message:
        return clear_text(url or load_profile().url)
    if UNVERIFIED in error.message:
        return untrusted(url or load_profile().url, error.message[error.message.index(UNVERIFIED) :])
    if error.message.startswith(_INFERENCE_SHAPE):
        return inference_asked(url or load_profile().url)
    if error.reason == "NOT_IMPLEMENTED" and error.metadata.get("service"):
        return other_service(url or load_profile().url, error.metadata)
    # The message often repeats the fields.
    parts = [f"{item.field}: {item.description}" for item in error.fields if item.description not in error.message]
    decision = error.metadata.get("decisionId")
    if decision and error.reason != "DECISION_NOT_FOUND":
        parts.append(f"details: llamesh why {decision}")
    cause, hint = error.message, error.remedy
    if error.reason in REMEDIES:
        remedy = _FREES_ALIAS if error.metadata.get("alias") else REMEDIES[error.reason]
        values = {name: quote(value) for name, value in error.metadata.items()}
        if "servers" in values:  # ids with commas between them
            values["servers"] = " ".join(map(quote, error.metadata["servers"].split(",")))
        hint = remedy.format_map(
            {
                "modelUuid": "MODEL",
                "username": "NAME",
                "jobId": "JOB",
                "contractId": "ID",
                "servers": "SERVER",
                **values,
            }
        )
    if not error.reason and any(words in error.message for words in _NO_GRPC):
        return not_llamesh(url or _selected())
    failure = NobodyAnswersError if error.code == "UNAVAILABLE" and not error.reason else CommandError
    if failure is NobodyAnswersError:
        # gRPC's message names sockets and attempts; the user needs the address.
        cause = f"{_mesh(url)} does not answer"
        hint = start_hint(url or _selected())
        parts.append("connection refused" if "Connection refused" in error.message else error.message)
    if error.code == "DEADLINE_EXCEEDED" and error.message == "Deadline Exceeded":
        # Not gRPC's message either: the deadline is the client's.
        cause = f"{_mesh(url)} did not answer in time"
        hint = "`llamesh doctor` names the part that does not answer; it is restarted by itself"
    if error.code == "UNAUTHENTICATED" and error.reason not in _NOT_BY_LOGIN:
        hint = "llamesh login"
        if not _signed_in():
            cause = "you are not signed in"
    code = exit_of(error.code, error.reason)
    if error.retry_after:
        parts.append(f"try again after {error.retry_after:g} s")
    return failure(cause, parts=parts, hint=hint, code=code)


def command_error(error: Exception) -> CommandError:
    """The failure of a command for any error."""
    return error if isinstance(error, CommandError) else translate(error) or unforeseen(error)


def _signed_in() -> bool:
    """Whether a token is available."""
    try:
        return bool(load_profile().token)
    except (NoMeshRunsError, InferencePortError):
        return False


def _selected() -> str:
    """The address of the selected mesh; empty if none runs."""
    try:
        return load_profile().url
    except (NoMeshRunsError, InferencePortError):
        return ""


def _mesh(url: str) -> str:
    """Describe the mesh that was called, which may have ended meanwhile."""
    try:
        return f"the mesh at {url or load_profile().url}"
    except (NoMeshRunsError, InferencePortError):
        return "the mesh of LLAMESH_HOME"
