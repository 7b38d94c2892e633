"""Compares documents with what a mesh holds. Pure: `plan` takes plain values and returns actions, in the order of dependencies.

A document is the whole spec: a field that is absent has its default, it does not keep its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from google.protobuf.message import Message

from llamesh.cli.companions import NO_FILE
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.manifest.dangling import INFER_ANY, Referents, dangling, name_of_model, referents
from llamesh.cli.manifest.differences import FieldChange, differences
from llamesh.cli.manifest.document import Document
from llamesh.cli.manifest.export import spec_of
from llamesh.cli.manifest.holdings import AmbiguousObjectError, Holdings, identity
from llamesh.cli.manifest.kinds import ORDER
from llamesh.cli.output import text
from llamesh.cli.served_names import INFER
from llamesh.client.references import address_of
from llamesh.v1 import gateway_pb2, manifest_pb2, model_pb2

Verb = Literal["create", "update", "unchanged"]
FIXED = {
    "Model": ("source", "name", "sha256"),
    "ModelServe": ("model_uuid", "namespace"),
    "Key": ("scopes", "contract"),
}
"""Fields that no call changes."""
_USES_REFERENCES: dict[str, tuple[Verb, ...]] = {"Model": ("create", "update"), "User": ("create",), "Key": ("create",)}
"""When an action of a kind uses what its document refers to outside the manifest."""
DEFAULT_WAKE_BUDGET = 120
_HINTS = {"ModelServe": ": servers of one manifest have different values of model_name; replicas scales one"}


@dataclass(frozen=True, slots=True)
class Action:
    """The action for one document."""

    document: Document
    verb: Verb
    desired: Any
    """The spec with defaults and references in the mesh's own terms."""
    present: Any = None
    """The object that is there."""
    changes: tuple[FieldChange, ...] = ()


def plan(
    documents: Sequence[Document], held: Holdings, unusable: Mapping[tuple[str, int], str] | None = None
) -> list[Action]:
    """An action for each document. CommandError that lists every document that cannot be applied.

    `unusable` holds the problem of each document, by its position, that refers to something outside the manifest that cannot be used.
    """
    problems: list[str] = []
    actions: list[Action] = []
    taken: dict[tuple[str, str], Document] = {}
    compare, known = comparison(documents, held), referents(documents, held)
    for document in sorted(documents, key=lambda item: ORDER.index(item.kind)):
        try:
            action = compare(document)
        except AmbiguousObjectError as error:
            problems.append(error.words(document))
            continue
        meant = identity(action.present) if action.present is not None else f"new {name_of(action)}"
        other = taken.setdefault((document.kind, meant), document)
        if other is not document:
            words = f"means the same object as {other.place('metadata.name')}"
            problems.append(f"{document.place('metadata.name')}: {words}{_HINTS.get(document.kind, '')}")
        refusals = list(_refusals(action, known))
        if not refusals and action.verb in _USES_REFERENCES.get(document.kind, ()):
            refusals = [words for position, words in (unusable or {}).items() if position == document.position]
        problems.extend(refusals)
        actions.append(action)
    if problems:
        raise CommandError("the manifest cannot be applied; nothing was changed", parts=problems, code=Exit.USAGE)
    return actions


def comparison(documents: Sequence[Document], held: Holdings) -> Callable[[Document], Action]:
    """A function that compares one of the documents with the mesh. It raises AmbiguousObjectError if the document means several objects."""
    names = {item.name: name_of_model(item.spec) for item in documents if item.kind == "Model"}
    limited = _limited(documents, held)
    return lambda document: _action(document, held, names, limited)


def conflicts(action: Action) -> Iterator[FieldChange]:
    """Yield the differences that no call can remove: the object that is there is another one than the document declares."""
    return (change for change in action.changes if change.path.split(".")[1] in FIXED.get(action.document.kind, ()))


def name_of(action: Action) -> str:
    """Return the key by which the next plan finds the object."""
    if action.document.kind == "ModelServe":
        return f"{action.desired.namespace or 'default'}/{action.desired.model_name}"
    return action.document.name


def find(document: Document, held: Holdings) -> Message | None:
    """The object that a document means. AmbiguousObjectError if its name means several."""
    return held.find(document, _served_name(document, held, {}))


def _limited(documents: Sequence[Document], held: Holdings) -> set[str]:
    """The ids of the contracts that limit models once the documents are applied."""
    models = {item.contract_id: list(item.models) for item in held.contracts}
    for document in documents:
        if document.kind != "Contract":
            continue
        spec: Any = document.spec
        with suppress(AmbiguousObjectError):  # reported at its own document
            if (there := find(document, held)) is not None:
                models[identity(there)] = list(spec.models) or ["*"]
    return {contract for contract, names in models.items() if "*" not in names}


def _action(document: Document, held: Holdings, names: dict[str, str], limited: set[str]) -> Action:
    desired = _with_defaults(document, held, names)
    present: Any = held.find(document, getattr(desired, "model_name", ""))
    if present is None:
        return Action(document, "create", desired)
    before = _comparable(spec_of(present), document.kind)
    if document.kind == "Model":
        before.projector, before.adapters[:] = _companions(present)
    after = _comparable(desired, document.kind, before)
    if document.kind == "Key" and after.contract in limited:
        after.scopes[:] = _narrowed(after.scopes, before.scopes)
    changes = tuple(differences(before, after, "spec"))
    repair = document.kind == "Model" and bool(present.problem)
    return Action(document, "update" if changes or repair else "unchanged", desired, present, changes)


def _with_defaults(document: Document, held: Holdings, names: dict[str, str]) -> Any:
    spec: Any = type(document.spec)()
    spec.CopyFrom(document.spec)
    if document.kind == "ModelServe":
        spec.model_name = _served_name(document, held, names)
        spec.parameters.ClearField("alias")
        spec.replicas = spec.replicas or 1
    elif document.kind == "Contract":
        spec.models[:] = spec.models or ["*"]
    elif document.kind == "User":
        spec.role = spec.role or gateway_pb2.ROLE_USER
    elif document.kind == "Key":
        spec.scopes[:] = spec.scopes or [INFER_ANY]
    if document.kind in {"User", "Key"} and spec.contract:
        spec.contract = held.contract_id(spec.contract)
    return spec


def _served_name(document: Document, held: Holdings, names: dict[str, str]) -> str:
    """The name that requests use: as given, else the model's."""
    if document.kind != "ModelServe":
        return ""
    spec: Any = document.spec
    given = spec.model_name or spec.parameters.alias
    return given or held.model_name(spec.model_uuid) or names.get(spec.model_uuid, "")


def _comparable(spec: Any, kind: str, other: Any = None) -> Any:
    """The spec without what cannot be compared and without values that are the default."""
    made: Any = type(spec)()
    made.CopyFrom(spec)
    if kind == "ModelServe":
        made.namespace = "" if made.namespace == "default" else made.namespace
        made.replicas = made.replicas or 1
        if not made.idle_sleep.ToNanoseconds():
            made.ClearField("idle_sleep")
        if made.wake_budget.ToMilliseconds() in {0, DEFAULT_WAKE_BUDGET * 1000}:
            made.ClearField("wake_budget")
        for part in ("parameters", "placement"):
            if not getattr(made, part).ListFields():
                made.ClearField(part)
    elif kind == "User":
        made.ClearField("password_from")
    elif kind == "Key":
        made.ClearField("expire_days")
        made.ClearField("secret_file")
        made.scopes[:] = sorted(made.scopes)
        if other is not None and not made.contract:
            made.contract = other.contract
    elif kind == "Model":
        made.sha256 = made.sha256.lower()
        if other is not None:
            made.name = made.name or other.name
            made.source = _comparable_source(made, other)
            made.sha256 = made.sha256 or other.sha256
            made.projector, made.adapters[:] = _comparable_companions(made, other)
    return made


def _companions(present: model_pb2.Model) -> tuple[str, list[str]]:
    """Return the name of a model's projector, "" without one, and the names of its adapters: the mesh does not show their sources."""
    projectors = [file.name for file in present.files if file.role == model_pb2.MODEL_FILE_ROLE_PROJECTOR]
    adapters = [file.name for file in present.files if file.role == model_pb2.MODEL_FILE_ROLE_ADAPTER]
    return (projectors[0] or "present") if projectors else "", sorted(adapters)


def _comparable_companions(
    desired: manifest_pb2.ModelSpec, present: manifest_pb2.ModelSpec
) -> tuple[str, Sequence[str]]:
    """The present projector if one is wanted, whatever its source, and the wanted names of adapters; what is not given stays."""
    projector = "" if desired.projector == NO_FILE else present.projector or desired.projector
    adapters: Sequence[str] = sorted(each.partition("=")[0] for each in desired.adapters)
    return projector, [] if list(desired.adapters) == [NO_FILE] else adapters or present.adapters


def _narrowed(desired: Sequence[str], present: Sequence[str]) -> list[str]:
    """Scopes under a contract that limits models: "infer:*" meant the models that the contract had when the key was made."""
    inference = [scope for scope in present if scope.startswith(INFER)]
    if INFER_ANY not in desired or not inference:
        return list(desired)
    return sorted({*desired, *inference} - ({INFER_ANY} - set(inference)))


def _comparable_source(desired: manifest_pb2.ModelSpec, present: manifest_pb2.ModelSpec) -> str:
    """The present source if the desired one leads to the same bytes, as far as the mesh says where they came from."""
    if not desired.source or desired.sha256 == present.sha256 or present.source == desired.source:
        return present.source
    wanted, known = urlsplit(address_of(desired.source)), urlsplit(present.source)
    if wanted.scheme in {"", "file"}:
        same = wanted.path.rpartition("/")[2] == present.source.rpartition("/")[2]
    else:
        same = (wanted.hostname, wanted.path) == (known.hostname, known.path)
    return present.source if same else desired.source


def _refusals(action: Action, known: Referents) -> Iterator[str]:
    document = action.document
    unknown = dict(dangling(action, known))
    for path, words in unknown.items():
        yield f"{document.place(path)}: {words}"
    if action.verb == "create" and document.kind == "Model" and not action.desired.source:
        yield f"{document.place('spec.source')}: is needed: the model is not there; write where it comes from"
    if action.verb == "create" and document.kind == "Key" and not action.desired.secret_file:
        yield f"{document.place('spec.secret_file')}: is needed to make the key: a file without content"
    reference = action.desired.password_from if document.kind == "User" else None
    if reference is not None and action.verb == "create" and bool(reference.env) == bool(reference.file):
        yield f"{document.place('spec.password_from')}: is needed to make the user: either env: NAME or file: PATH"
    for change in conflicts(action):
        if change.path in unknown:
            continue
        words = f"cannot be changed ({change.before} -> {change.after})"
        yield f"{document.place(change.path)}: {words}; {_replacement(action)}"


def _replacement(action: Action) -> str:
    document, known = action.document, identity(action.present)
    if document.kind == "ModelServe":
        written = bool({"spec.model_name", "spec.parameters.alias"} & document.lines.keys())
        why = "" if written else ", which is the default without spec.model_name (metadata.name is not used for it)"
        served = f"server {known} is served as {text(action.present.model_name)}{why}"
        return f"{served}; write another spec.model_name, or `llamesh stop {known}` first"
    removal = {"Model": f"llamesh rm {known}", "Key": f"llamesh keys revoke {known}"}[document.kind]
    return f"take another metadata.name, or `{removal}` first"
