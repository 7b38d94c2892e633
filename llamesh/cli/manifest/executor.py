"""Executes one action of a plan. Invariant: each call is idempotent, or the next plan observes its effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llamesh.cli.failure import CommandError
from llamesh.cli.manifest import holdings
from llamesh.cli.manifest.holdings import identity
from llamesh.cli.manifest.plan import Action
from llamesh.cli.manifest.references import companions_of, password_of, source_of, token_path
from llamesh.cli.manifest.token_file import ended_tokens, holds_token, reserved
from llamesh.cli.sources import fetchable
from llamesh.v1 import contract_pb2, gateway_pb2, server_pb2

if TYPE_CHECKING:
    from llamesh.client.sync import Client


def carry_out(mesh: Client, action: Action) -> Any:
    """Create or update the object of an action and return it. CommandError if another apply has created it at the same moment."""
    return _HANDLERS[action.document.kind](mesh, action)


def remove(mesh: Client, kind: str, item: Any) -> None:
    """Remove an object."""
    calls: dict[str, Callable[[str], object]] = {
        "Model": mesh.models.delete,
        "Contract": mesh.contracts.delete,
        "User": mesh.users.delete,
        "ModelServe": mesh.servers.stop,
        "Key": mesh.keys.revoke,
    }
    calls[kind](identity(item))


def _model(mesh: Client, action: Action) -> object:
    spec = action.desired
    source = source_of(action.document)
    name = spec.name or (action.present.name if action.present else "")
    sha256 = spec.sha256 or (action.present.sha256 if action.present else "")
    uuid = action.document.name
    with (
        fetchable(source, mesh.profile, purpose=uuid) as file,
        companions_of(action.document).handed(uuid, mesh.profile) as others,
    ):
        pull = mesh.models.pull(file.url, uuid=uuid, name=name, sha256=sha256, **others.arguments)
        # The files stay for the mesh if this command ends before the fetch.
        others.kept = True
        try:
            with file.fetched_by(pull):
                return pull.wait()
        finally:
            others.kept = file.kept


def _contract(mesh: Client, action: Action) -> object:
    spec, name = action.desired, action.document.name
    models, concurrent = list(spec.models), spec.max_concurrent_requests
    if action.present is None:
        return _alone(mesh, action, mesh.contracts.create(name, concurrent=concurrent, models=models))
    return mesh.contracts.update(action.present.contract_id, concurrent=concurrent, models=models)


def _user(mesh: Client, action: Action) -> object:
    spec, name = action.desired, action.document.name
    role, contract = gateway_pb2.Role.Name(spec.role).removeprefix("ROLE_"), _contract_id(mesh, action)
    if action.present is None:
        made = mesh.users.create(name, password_of(action.document), role=role, contract=contract)
        return mesh.users.update(name, disabled=True) if spec.disabled else made
    return mesh.users.update(name, role=role, contract=contract, disabled=spec.disabled)


def _server(mesh: Client, action: Action) -> object:
    spec = action.desired
    if action.present is None:
        made = mesh.servers.serve(
            spec.model_uuid,
            name=spec.model_name,
            replicas=spec.replicas,
            parameters=spec.parameters,
            idle_sleep=_seconds(spec, "idle_sleep"),
            wake_budget=_seconds(spec, "wake_budget"),
            namespace=spec.namespace,
            metered=spec.metered,
            placement=spec.placement if spec.HasField("placement") else None,
        )
        return _alone(mesh, action, made)
    return mesh.servers.update(action.present, changes_of(action), etag=action.present.etag)


def changes_of(action: Action) -> server_pb2.ServerChanges:
    """Return the changes for an existing server: only the fields that differ."""
    spec = action.desired
    made = server_pb2.ServerChanges()
    for name in {change.path.split(".")[1] for change in action.changes}:
        if name == "parameters":
            made.parameters.CopyFrom(spec.parameters)
            if not spec.parameters.ListFields():
                made.ClearField("parameters")
                made.runtime_params = ""
        elif name in {"idle_sleep", "wake_budget", "placement"}:
            # Zero, or an empty message, means the default.
            getattr(made, name).CopyFrom(getattr(spec, name))
        else:
            setattr(made, name, getattr(spec, name))
    return made


def _key(mesh: Client, action: Action) -> object:
    spec = action.desired
    with reserved(action.document, ended_tokens(mesh.keys.list())) as file:
        made = mesh.keys.create(
            action.document.name,
            scopes=list(spec.scopes),
            contract=_contract_id(mesh, action),
            days=spec.expire_days,
        )
        key: contract_pb2.Key = made.key
        try:
            _check_first(mesh, action, key)
            file.write(made.token)
        except BaseException:
            # No client would have the token.
            mesh.keys.revoke(key.key_id)
            raise
    return key


def _alone(mesh: Client, action: Action, made: Any) -> Any:
    """The object just created, if it is the first of its name; it is removed otherwise."""
    try:
        _check_first(mesh, action, made)
    except CommandError:
        remove(mesh, action.document.kind, made)
        raise
    return made


def _check_first(mesh: Client, action: Action, made: Any) -> None:
    """Of several objects of one name that were created at once the first stays; CommandError for the others.

    Names of contracts, servers and keys are not unique in the mesh, and applies of several machines see each other only here.
    """
    found = holdings.read(mesh, {action.document.kind}).named(
        action.document, getattr(action.desired, "model_name", "")
    )
    first = min(found, key=_age, default=made)
    if identity(first) != identity(made):
        raise CommandError("somebody else has created it at the same moment", parts=[identity(first)])


def _age(item: Any) -> tuple[int, str]:
    """Sort key of the objects of one name: the one that was created first stays."""
    return item.create_time.ToNanoseconds(), identity(item)


def without_token(action: Action) -> str:
    """Describe a key that exists while its file holds no token; empty for everything else."""
    if action.document.kind != "Key" or action.present is None or not action.desired.secret_file:
        return ""
    path = token_path(action.document)
    try:
        if holds_token(path, action.present.key_id):
            return ""
    except OSError:
        return ""
    remedy = f"if nobody has it, `llamesh keys revoke {action.present.key_id}` and apply again"
    return f"is there, but {path} does not hold its token: {remedy}"


def _contract_id(mesh: Client, action: Action) -> str:
    """Return the id of the contract of a user or key: of several of its name the first.

    The plan has refused an ambiguous name, so the first is the one that the plan found or that an earlier action has created. A later
    one is that of another apply at the same moment, which removes it (see `_check_first`).
    """
    name = action.desired.contract
    contracts = list(mesh.contracts.list()) if name else []
    if any(item.contract_id == name for item in contracts):
        return str(name)
    found = min((item for item in contracts if item.display_name == name), key=_age, default=None)
    return found.contract_id if found else str(name)


def _seconds(spec: Any, name: str) -> float | None:
    return getattr(spec, name).ToNanoseconds() / 1e9 if spec.HasField(name) else None


_HANDLERS: dict[str, Callable[[Client, Action], object]] = {
    "Model": _model,
    "Contract": _contract,
    "User": _user,
    "ModelServe": _server,
    "Key": _key,
}
