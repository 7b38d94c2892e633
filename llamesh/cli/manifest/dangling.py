"""Finds references to models, contracts and scopes that exist neither in the mesh nor in the documents. Pure.

Invariant: a reference of an existing object is checked only if its document changes the reference.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from buf.validate import validate_pb2
from llamesh.cli.manifest.document import Document
from llamesh.cli.manifest.holdings import Holdings
from llamesh.cli.output import text
from llamesh.cli.served_names import INFER, refusals_of_ids_and_aliases, requestable, unknown_names
from llamesh.client.names import names_of
from llamesh.client.references import address_of
from llamesh.model_addresses import default_name
from llamesh.nearest import nearest
from llamesh.v1 import contract_pb2
from llamesh.v1.model_pb2 import Model

if TYPE_CHECKING:
    from llamesh.cli.manifest.plan import Action

INFER_ANY = f"{INFER}*"
_MODELS = ("spec.model_uuid", "spec.parameters.model_draft")
_WORDS = ("manage", "metrics", INFER_ANY)
_SCOPES = ", ".join([*_WORDS, f"{INFER}MODEL"])
"""All forms of scopes, for people."""


@dataclass(frozen=True, slots=True)
class Referents:
    """What documents may refer to once all of them are applied."""

    model_names: dict[str, str]
    """The id of each model by its id and its names."""
    contracts: frozenset[str]
    """Ids and names."""
    served: frozenset[str]
    """Names and ids of servers, and names of models."""
    allowed: frozenset[str]
    """The names that contracts allow. With those that are served, they may follow "infer:"."""
    models: tuple[Model, ...]
    """Those of the mesh, and those that are declared."""


def referents(documents: Sequence[Document], held: Holdings) -> Referents:
    """Collect them from a mesh and from documents."""
    models = {name: uuid for item in held.models.values() for uuid, name in names_of(item)}
    models |= {name_of_model(item.spec): item.name for item in documents if item.kind == "Model"}
    models |= {uuid: uuid for uuid in [*models.values(), *held.models]}
    contracts = {name for item in held.contracts for name in (item.contract_id, item.display_name)}
    served = requestable(held.models.values(), held.servers)
    allowed = {name for item in held.contracts for name in item.models}
    for document in documents:
        spec: Any = document.spec
        if document.kind == "Contract":
            contracts.add(document.name)
            allowed.update(spec.models)
        elif document.kind == "ModelServe":
            served.update({spec.model_name, spec.parameters.alias})
    declared = [
        Model(model_uuid=item.name, name=name_of_model(item.spec)) for item in documents if item.kind == "Model"
    ]
    served |= {model.name for model in declared}
    known = (*held.models.values(), *declared)
    return Referents(models, frozenset(contracts), frozenset(served), frozenset(allowed), known)


def name_of_model(spec: Any) -> str:
    """The name of a model that a document declares: as given, else that of its source."""
    return str(spec.name) or default_name(address_of(spec.source))


def names_models(document: Document) -> bool:
    """Whether a document is a key whose scopes name models or servers, or a contract that names models."""
    spec: Any = document.spec
    if document.kind == "Contract":
        return any(name != "*" for name in spec.models)
    return document.kind == "Key" and any(scope.startswith(INFER) and scope != INFER_ANY for scope in spec.scopes)


def warnings(actions: Iterable[Action], known: Referents) -> Iterator[str]:
    """Yield a warning for each model that a contract names and that is neither there nor declared: it may come later."""
    for action in actions:
        if action.document.kind == "Contract" and action.verb != "unchanged":
            spec: Any = action.document.spec
            for words in unknown_names(spec.models, set(known.served)):
                yield f"{action.document.place('spec.models')}: {words}"


def dangling(action: Action, known: Referents) -> Iterator[tuple[str, str]]:
    """Yield the field and the problem of each reference of an action to nothing."""
    document = action.document
    spec: Any = document.spec
    changed = {change.path for change in action.changes}
    for path, words in _problems(document.kind, spec, known):
        if action.verb == "create" or path in changed:
            yield path, words


def _problems(kind: str, spec: Any, known: Referents) -> Iterator[tuple[str, str]]:
    if kind == "ModelServe":
        ids = set(known.model_names.values())
        for path, wanted in zip(_MODELS, (spec.model_uuid, spec.parameters.model_draft), strict=True):
            if wanted and wanted not in ids:
                meant = known.model_names.get(wanted) or nearest(wanted, ids)
                yield path, _missing(f"there is no model with the id {text(wanted)}", meant)
    if kind in {"User", "Key"} and spec.contract and spec.contract not in known.contracts:
        yield "spec.contract", _no("contract", spec.contract, known.contracts)
    if kind == "Contract":
        for words in refusals_of_ids_and_aliases(spec.models, known.models, known.served):
            yield "spec.models", words
    if kind == "Key":
        for scope in spec.scopes:
            name = scope.removeprefix(INFER)
            if other := refusals_of_ids_and_aliases([name], known.models, known.served) if name != scope else []:
                yield "spec.scopes", f"{text(scope)}: {other[0]}"
            elif not _is_scope(scope):
                meant = nearest(scope, _WORDS)
                yield "spec.scopes", f"{text(scope)} is no scope" + (_hint(meant) if meant else f": {_SCOPES}")
            elif name not in {scope, "*"} and name not in known.served | known.allowed:
                yield "spec.scopes", f"{text(scope)}: {_no('model', name, known.served | known.allowed)}"


def _is_scope(scope: str) -> bool:
    rules = contract_pb2.CreateKeyRequest.DESCRIPTOR.fields_by_name["scopes"].GetOptions()
    return re.fullmatch(rules.Extensions[validate_pb2.field].repeated.items.string.pattern, scope) is not None


def _no(what: str, name: str, known: Collection[str]) -> str:
    return _missing(f"there is no {what} {text(name)}", nearest(name, sorted(known)))


def _missing(problem: str, meant: str) -> str:
    """The problem of a reference to an object, with what was probably meant."""
    return problem + (_hint(meant) if meant else ", and none is declared here")


def _hint(meant: str) -> str:
    return f"; did you mean {text(meant)}?"
