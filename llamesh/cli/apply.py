"""`llamesh apply, diff, delete, schema`: the mesh as files declare it (docs/adr/0026-manifests.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from llamesh.cli.connection import connected
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import text
from llamesh.cli.printing import note, put, say
from llamesh.cli.readiness import awaited

if TYPE_CHECKING:
    from llamesh.cli.manifest.document import Document
    from llamesh.cli.manifest.holdings import Holdings
    from llamesh.cli.manifest.plan import Action
    from llamesh.cli.manifest.record import CreatedObject, Record
    from llamesh.client.sync import Client

Files = Annotated[
    Sequence[str],
    Parameter(
        name=("--filename", "-f"),
        negative="",
        allow_leading_hyphen=True,
        help="A YAML file, - for standard input; may be repeated.",
    ),
]
Flag = Parameter(negative="")
NOTHING_RECORDED = (
    "--prune removes nothing: no object of this mesh is recorded here as created by an apply of these files"
)
DONE = {"create": "created", "update": "updated", "unchanged": "unchanged"}
WOULD = {"create": "would be created", "update": "would be updated", "unchanged": "unchanged"}


def apply(
    *,
    filename: Files,
    dry_run: Annotated[bool, Flag] = False,
    prune: Annotated[bool, Flag] = False,
    set_name: Annotated[str, Parameter(name="--set")] = "",
    wait: bool = False,
) -> None:
    """Create and change what the files declare: models, contracts, users, servers, keys, in this order. Applying again changes nothing.

    Parameters
    ----------
    dry_run
        Only say what would be done.
    prune
        Also remove what an earlier apply of the same files by this user created and the files no longer declare.
    set_name
        Name that --prune knows the files by; their absolute paths if not given.
    wait
        Wait until every declared server that is awake is ready.
    """
    documents = _read(filename)
    with connected() as mesh:
        from llamesh.cli.declaring import declaring
        from llamesh.cli.manifest.kinds import label_of
        from llamesh.cli.manifest.outside import unusable
        from llamesh.cli.manifest.plan import plan
        from llamesh.cli.manifest.pruning import is_known, to_prune
        from llamesh.cli.manifest.record import Record

        record = Record(mesh.profile.url, _set_name(filename, set_name, prune))
        with nullcontext() if dry_run else declaring(mesh.profile.url, "apply"):
            before = record.entries()
            held = _held(mesh, documents, {item.kind for item in before} if prune else set())
            actions = plan(documents, held, unusable(documents, held, mesh.profile))
            _warn(actions, documents, held)
            gone = to_prune(before, actions, held) if prune else []
            if prune and any(action.verb != "create" for action in actions) and not is_known(before, held):
                note(NOTHING_RECORDED)
            if not dry_run:
                _apply(mesh, actions, record)
                _prune(mesh, gone, record)
        if dry_run:
            _show(actions, WOULD)
            for item, _ in gone:
                say(text(f"{label_of(item.kind, item.name)} would be removed"))
            return
        if wait:
            _wait(mesh, documents)


def diff(*, filename: Files) -> int:
    """Show how the mesh differs from the files. Exit code 0 if it does not, 1 if it does; failures have codes from 2."""
    from llamesh.cli.manifest.plan import plan

    try:
        documents = _read(filename)
        with connected() as mesh:
            held = _held(mesh, documents)
            actions = plan(documents, held)
            _warn(actions, documents, held)
    except Exception as error:
        raise _never_one(error) from error
    different = [action for action in actions if action.verb != "unchanged"]
    _show(different, WOULD)
    return int(bool(different))


def delete(*, filename: Files, dry_run: Annotated[bool, Flag] = False) -> None:
    """Remove what the files declare, in reverse order: keys are revoked, servers stopped. What is not there is no error.

    Parameters
    ----------
    dry_run
        Only say what would be removed.
    """
    from llamesh.cli.manifest import holdings
    from llamesh.cli.manifest.executor import remove
    from llamesh.cli.manifest.removal import label, to_remove

    documents = _read(filename)
    with connected() as mesh:
        found = to_remove(documents, holdings.read(mesh, {item.kind for item in documents}))
        steps = [
            (label(item, there), _remover(remove, mesh, item.kind, there)) for item, there in found if there is not None
        ]
        for item, there in found:
            if there is None:
                say(text(f"{item.label} is not there"))
        if dry_run:
            for name, _ in steps:
                say(text(f"{name} would be removed"))
            return
        _in_order(steps, "removed", {})


def schema() -> None:
    """Print the JSON schema of a manifest, for editors: save it and name it in `# yaml-language-server: $schema=FILE`."""
    from importlib.resources import files

    put(files("llamesh.v1").joinpath("manifest.schema.json").read_text(encoding="utf-8"))


def _read(filename: Sequence[str]) -> list[Document]:
    from llamesh.cli.manifest.reader import read

    if not filename:
        raise CommandError("no file is given", hint="llamesh apply -f mesh.yaml", code=Exit.USAGE)
    documents = read(filename)
    if not documents:
        note(f"nothing is declared in {' '.join(filename)}")
    return documents


def _set_name(filename: Sequence[str], given: str, prune: bool) -> str:
    if prune and not given and "-" in filename:
        raise CommandError("standard input has no name to prune by", hint="--set NAME", code=Exit.USAGE)
    return given or "\n".join(sorted(str(Path(item).resolve()) for item in filename))


def _warn(actions: Sequence[Action], documents: Sequence[Document], held: Holdings) -> None:
    from llamesh.cli.manifest.dangling import referents, warnings

    for words in warnings(actions, referents(documents, held)):
        note(words)


def _held(mesh: Client, documents: Sequence[Document], also: Set[str] = frozenset()) -> Holdings:
    from llamesh.cli.manifest import holdings
    from llamesh.cli.manifest.dangling import names_models

    referred = {"Model", "ModelServe"} if any(map(names_models, documents)) else set()
    return holdings.read(mesh, {item.kind for item in documents} | also | referred)


def _apply(mesh: Client, actions: Sequence[Action], record: Record) -> None:
    from llamesh.cli.manifest.executor import carry_out
    from llamesh.cli.manifest.plan import name_of

    def step(action: Action) -> Callable[[], None]:
        kind, name = action.document.kind, action.document.name

        def run() -> None:
            if kind == "Model":
                note(text(f"fetching {name}"))
            if action.verb == "create":
                record.creating(kind, name, name_of(action), lambda: carry_out(mesh, action))
            else:
                carry_out(mesh, action)

        return run

    _show([action for action in actions if action.verb == "unchanged"], DONE)
    steps = [(action.document.label, step(action)) for action in actions if action.verb != "unchanged"]
    _in_order(steps, "", {action.document.label: action for action in actions})


def _prune(mesh: Client, gone: Sequence[tuple[CreatedObject, Any]], record: Record) -> None:
    from llamesh.cli.manifest.executor import remove
    from llamesh.cli.manifest.kinds import label_of

    def step(entry: CreatedObject, there: Any) -> Callable[[], None]:
        def run() -> None:
            remove(mesh, entry.kind, there)
            record.drop(entry)

        return run

    _in_order([(label_of(entry.kind, entry.name), step(entry, there)) for entry, there in gone], "removed", {})


def _remover(remove: Callable[..., None], mesh: Client, kind: str, there: object) -> Callable[[], None]:
    return lambda: remove(mesh, kind, there)


def _in_order(steps: Sequence[tuple[str, Callable[[], None]]], done: str, actions: dict[str, Action]) -> None:
    """Execute the steps; at the first failure report the finished and the remaining ones."""
    for number, (label, step) in enumerate(steps):
        try:
            step()
        except Exception as error:
            raise _partly(error, [name for name, _ in steps], number, actions.get(label)) from error
        if label in actions:
            _show([actions[label]], DONE)
        else:
            say(text(f"{label} {done}"))


def _partly(error: Exception, labels: Sequence[str], number: int, action: Action | None) -> CommandError:
    """The failure of one step, with its position in the files and the results of the other steps."""
    from llamesh.cli.refusals import command_error
    from llamesh.client.errors import MeshError

    failure = command_error(error)
    parts = list(failure.parts)
    if isinstance(error, MeshError) and action is not None:
        fields = [item.field.removeprefix("changes.") for item in error.fields] or [""]
        parts += [action.document.place(f"spec.{field}".rstrip(".")) for field in fields]
    if number:
        parts.append(f"done: {', '.join(labels[:number])}")
    if labels[number + 1 :]:
        parts.append(f"not done: {', '.join(labels[number + 1 :])}")
    hint = (
        f"{failure.hint.rstrip('.')}; then run the same command again: what is done stays"
        if failure.hint
        else ("run the same command again: what is done stays")
    )
    return CommandError(f"{labels[number]}: {failure.cause}", parts=parts, hint=hint, code=failure.code)


def _never_one(error: Exception) -> CommandError:
    """The failure of a comparison: code 1 means that something differs, so a failure has another."""
    from llamesh.cli.refusals import command_error

    failure = command_error(error)
    if failure.code == Exit.FAILED:
        failure.code = Exit.USAGE
    return failure


def _wait(mesh: Client, documents: Sequence[Document]) -> None:
    from llamesh.cli.manifest import holdings
    from llamesh.cli.manifest.plan import find
    from llamesh.v1 import server_pb2

    held = holdings.read(mesh, {"ModelServe"})
    asleep = server_pb2.SERVER_STATE_SLEEPING
    for document in documents:
        if document.kind == "ModelServe":
            server: Any = find(document, held)
            if server is not None and server.state != asleep:
                awaited(mesh, server)
                say(text(f"{document.label} is ready"))


def _show(actions: Sequence[Action], words: dict[str, str]) -> None:
    from llamesh.cli.manifest.executor import without_token

    for action in actions:
        say(text(f"{action.document.label} {without_token(action) or words[action.verb]}"))
        for change in action.changes:
            say(text(f"  {change}"))
