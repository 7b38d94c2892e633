"""What to do about each reason of the contract, in commands. Pure.

The remedies of the contract name REST calls, and fields of requests. An error that is raised has metadata; one that is stored with a job or
a download has only its reason and what it belongs to (`of_failed_download`).
"""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from typing import TYPE_CHECKING

from llamesh.model_addresses import is_address

if TYPE_CHECKING:
    from llamesh.v1.download_pb2 import Download

_CORRECTED = "correct what the message names"
_ALLOWED = (
    "`llamesh pull --help` names the forms of a source; an administrator allows folders and hosts in the settings"
)
"""The remedy for sources that the settings of the mesh may allow."""
REMEDIES = {
    "COMPONENT_UNAVAILABLE": "try again in a moment; `llamesh doctor` names the component and its cause",
    "UNAUTHENTICATED": "`llamesh login` gets a token",
    "SERVER_NOT_FOUND": "`llamesh status` lists the servers",
    "DOES_NOT_FIT": "lower --ctx-size or --replicas, or free memory: `llamesh sleep SERVER`, `llamesh stop SERVER`",
    "PLACEMENT_NOT_ALLOWED": "use what the message allows; an administrator extends the setting",
    "PLACEMENT_NEEDS_KUBERNETES": "leave out --node-selector, --toleration, --gpus, --priority-class and --image; in a manifest, "
    "spec.placement",
    "MODEL_CORRUPT": "`llamesh pull --uuid {modelUuid}` downloads it again and repairs it",
    "MODEL_NAME_TAKEN": "take another name",
    "MODEL_IN_USE": "`llamesh stop {servers}` stops what uses it",
    "MODEL_NOT_FOUND": "`llamesh models` lists the models; `llamesh pull` fetches one",
    "DOWNLOAD_CONFLICT": "`llamesh pull SOURCE --name NAME` makes it another model; `llamesh downloads cancel {modelUuid}` ends the first"
    " download",
    "DOWNLOAD_NOT_FOUND": "`llamesh downloads` lists the downloads; `llamesh pull` fetches a model",
    "DOWNLOAD_ENDED": "`llamesh downloads retry {modelUuid}` fetches it again",
    "DOWNLOAD_NOT_ENDED": "`llamesh downloads cancel {modelUuid}` ends it first",
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
    "QUANT_MODEL_EXISTS": "give another --name; `llamesh variants rm {modelUuid}` removes the variant, `llamesh jobs cancel {jobId}` ends"
    " the job that is making it",
    "TOO_MANY_JOBS": "wait for the end of one, or end one: `llamesh jobs` and `llamesh downloads` list them, `llamesh jobs cancel JOB` or"
    " `llamesh downloads cancel MODEL` ends one",
    "QUANT_REFUSED": "",
    "QUANTISATION_FAILED": "`llamesh jobs show {jobId}` shows the log of the step; `llamesh jobs retry {jobId}` tries again",
    "SOURCE_REFUSED": _CORRECTED,
    "SOURCE_UNAVAILABLE": "check the address, and the network of the mesh's machine",
    "KEY_NOT_FOUND": "`llamesh keys list` lists the keys",
}
"""Commands for remedies of the contract that name REST calls. Braces hold keys of the error's metadata."""
_MIRROR = "; without internet access, HF_ENDPOINT names a mirror of the Hugging Face Hub"
"""The end of the remedy if the Hub does not answer."""
_BY_REQUEST = frozenset({"CONTENT_MISMATCH", "MODEL_INVALID", "SOURCE_REFUSED"})
"""Reasons of failed downloads that the same request may meet again, because something in it is wrong."""
BY_RULE: Mapping[tuple[str, str], str] = {
    (
        "DOWNLOAD_CONFLICT",
        "changed",
    ): "`llamesh pull PATH --uuid {modelUuid} --update` replaces the model with the file (give files of --mmproj and --lora again), "
    "`llamesh pull PATH --name NAME` makes it another model",
    ("DOWNLOAD_CONFLICT", "SUCCEEDED"): "`llamesh pull SOURCE --name NAME` makes it another model, "
    "`llamesh pull SOURCE --uuid {modelUuid} --update` replaces the first one",
    ("DOWNLOAD_ENDED", "SUCCEEDED"): "nothing is left to do: `llamesh describe {modelUuid}` shows the model",
    ("QUANT_REFUSED", "disk"): "`llamesh df` shows what takes room; `llamesh quantize` takes one type too",
    (
        "QUANT_REFUSED",
        "matrix",
    ): "`llamesh quantize MODEL --types TYPE --importance-matrix` measures a matrix, --imatrix FILE uses one",
    ("QUANT_REFUSED", "quantised"): "`llamesh search` finds unquantised models; --allow-requantize accepts this one",
    ("QUANT_REFUSED", "architecture"): "`llamesh search` finds models that are GGUF files already",
    ("QUANT_REFUSED", "code"): "`llamesh search` finds models that are GGUF files already",
    (
        "QUANT_MODEL_EXISTS",
        "exists",
    ): "`llamesh run quant:{modelUuid}` uses it; give another --name, or remove it: `llamesh variants rm {modelUuid}`",
    (
        "QUANT_MODEL_EXISTS",
        "making",
    ): "`llamesh jobs watch {jobId}` follows the job that makes it; give another --name, or end the job: `llamesh jobs cancel {jobId}`",
    **dict.fromkeys((("SOURCE_REFUSED", rule) for rule in ("folder", "host", "address", "scheme")), _ALLOWED),
    ("SOURCE_REFUSED", "form"): "`llamesh pull --help` names the forms of a source",
    ("SOURCE_REFUSED", "missing"): "check the name, and that the mesh may read it",
    ("SOURCE_REFUSED", "ambiguous"): "",
    ("SOURCE_REFUSED", "parts"): "complete the files of the model, or take another one",
    ("SOURCE_REFUSED", "pickle"): "`llamesh search` finds models that are GGUF files already",
    (
        "SOURCE_REFUSED",
        "checkpoint",
    ): "of a GGUF model, `llamesh pull {address}` comes first, then `llamesh quantize MODEL`",
    ("SOURCE_REFUSED", "place"): "take an address of the places that the mesh has",
}
"""Commands for the rules of a reason, in the metadata `rule`, and for the state of a download, in `state`. The message has the rest."""
OF_A_USER_OF_JOBS = frozenset({"USER_DISABLED", "USER_NOT_FOUND", "SCOPE_MISSING"})
"""The reasons with which a job ends that the user whose rights it has may not have any more."""
_TAKES_JOB_OVER = "`llamesh jobs retry {jobId}` goes on with your rights"
_FREES_ALIAS = "take another name; `llamesh alias {modelUuid} {alias} --remove` frees it"
"""The remedy if the name is an alias, which the metadata spell as it is stored."""
_UNKNOWN = {
    "modelUuid": "MODEL",
    "username": "NAME",
    "jobId": "JOB",
    "contractId": "ID",
    "servers": "SERVER",
    "address": "ADDRESS",
}
"""What stands for a value that the metadata lack."""


_FAILED_DOWNLOAD = "failedDownload"
"""Key that metadata get here: the download that has failed with the error. Its remedy also names the command that fetches it again."""
_REPAIRED = "MODEL_CORRUPT"
"""The reason whose own remedy fetches the model again."""


def of_failed_download(download: Download) -> dict[str, str]:
    """Return what the metadata of the error of a download that has failed lack."""
    return {"modelUuid": download.model_uuid, "source": download.source, _FAILED_DOWNLOAD: download.model_uuid}


def remedy_for(reason: str, metadata: Mapping[str, str], contracts: str) -> str:
    """Return what to do about an error in commands; `contracts`, the remedy of the contract, if no command is better.

    "" if the message of the error says what to do.
    """
    remedy = _remedy(reason, metadata, contracts)
    if _FAILED_DOWNLOAD not in metadata or reason == _REPAIRED:
        return remedy
    uuid, source = quote(metadata[_FAILED_DOWNLOAD]), metadata.get("source", "")
    again = f"`llamesh downloads retry {uuid}` fetches it again from the same source"
    if source and not is_address(source):
        again = f"`llamesh pull PATH --uuid {uuid}` takes its file again"
    elif reason in _BY_REQUEST:
        again = (
            f"`llamesh pull ADDRESS --uuid {uuid}` with the right options replaces the request,"
            f" `llamesh downloads retry {uuid}` repeats it"
        )
    return f"{remedy}{' ' if remedy.endswith('.') else '; '}{again}" if remedy else again


def _remedy(reason: str, metadata: Mapping[str, str], contracts: str) -> str:
    detail = metadata.get("rule") or metadata.get("state", "")
    remedy = BY_RULE.get((reason, detail), REMEDIES.get(reason))
    if reason == "SOURCE_REFUSED" and _FAILED_DOWNLOAD in metadata:
        remedy = _CORRECTED
    if reason == "SOURCE_UNAVAILABLE" and metadata.get("source", "").startswith("hf:"):
        remedy = f"{remedy}{_MIRROR}"
    if reason in OF_A_USER_OF_JOBS and metadata.get("jobId"):
        remedy = _TAKES_JOB_OVER
    if remedy is None:
        return contracts
    if reason == "MODEL_NAME_TAKEN" and metadata.get("alias"):
        remedy = _FREES_ALIAS
    values = {name: quote(value) for name, value in metadata.items()}
    if "servers" in values:  # ids with commas between them
        values["servers"] = " ".join(map(quote, metadata["servers"].split(",")))
    if is_address(source := metadata.get("source", "")):
        values["address"] = quote(source)
    return remedy.format_map({**_UNKNOWN, **values})
