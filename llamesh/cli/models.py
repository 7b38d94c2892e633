"""`llamesh models, pull, rm`: what can be served, how it comes in, and how it goes."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from llamesh.cli.absent_models import refuse_known
from llamesh.cli.companions import Companions
from llamesh.cli.connection import connected
from llamesh.cli.downloads import DOWNLOAD, ModelName
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.local_files import is_path
from llamesh.cli.lookups import find_model
from llamesh.cli.output import Column, Output, show_list, show_one, size, text, when, word
from llamesh.cli.printing import note
from llamesh.cli.progress import followed
from llamesh.cli.quality import quality
from llamesh.cli.sources import fetchable
from llamesh.client.profile import load_profile
from llamesh.model_addresses import FORMS, is_address

if TYPE_CHECKING:
    from llamesh.client.sync import Client, Pull
    from llamesh.v1.model_pb2 import Model


def _modalities(model: Model) -> str:
    from llamesh.v1 import model_pb2

    return ",".join(word(model_pb2.Modality, value, "MODALITY_").lower() for value in model.gguf.modalities)


def _chat(model: Model) -> str:
    """What the chat template can do."""
    header = model.gguf
    abilities = {"tools": header.chat_template_has_tools, "reasoning": header.chat_template_has_reasoning}
    return ",".join(name for name, has in {"chat": header.has_chat_template, **abilities}.items() if has)


MODEL = (
    Column("MODEL", lambda model: model.model_uuid),
    Column("NAME", lambda model: model.name, spare=True),
    Column("SIZE", lambda model: size(model.size_bytes)),
    Column("QUANT", lambda model: model.gguf.quantisation),
    Column("STATE", lambda model: "damaged" if model.problem else "ready"),
    Column("CONTEXT", lambda model: model.gguf.context_length or "", spare=True),
    Column("ARCHITECTURE", lambda model: model.gguf.architecture, wide=True),
    Column("FOR", _modalities, wide=True),
    Column("CHAT", _chat, wide=True),
    Column("QUALITY", lambda model: quality(model.quality) if model.HasField("quality") else "", wide=True),
    Column("LICENSE", lambda model: model.gguf.license or model.source_facts.license, wide=True),
    Column("TAGS", lambda model: ",".join(model.gguf.tags), wide=True),
    Column("ALIASES", lambda model: ",".join(model.aliases), wide=True),
    Column("SOURCE", lambda model: model.source, wide=True),
    Column("FILES", lambda model: len(model.files), wide=True),
    Column("REVISION", lambda model: model.revision[:12], wide=True),
    Column("PROBLEM", lambda model: model.problem, wide=True),
    Column("ADDED", lambda model: when(model.create_time), wide=True),
    Column("BY", lambda model: model.fetched_by, wide=True),
    Column("SHA256", lambda model: model.sha256, wide=True),
)


SourceKind = Literal["hub", "http", "registry", "s3", "quant", "file"]
"""What `--source` takes: the kinds of the contract."""
_ORDERS = {"added": "CREATE_TIME", "name": "NAME", "size": "SIZE_BYTES"}


def models(
    query: str = "",
    *,
    architecture: str = "",
    quantisation: str = "",
    tag: str = "",
    source: SourceKind | None = None,
    order: Literal["added", "name", "size"] = "added",
    reverse: Annotated[bool, Parameter(negative="")] = False,
    output: Output = "table",
) -> None:
    """List the models that can be served. All filters must hold.

    Parameters
    ----------
    query
        Only models of which the name or an alias contains this.
    architecture
        Only this architecture, for instance llama.
    quantisation
        Only this quantisation, for instance Q4_K_M.
    tag
        Only models with this tag of their file.
    source
        Only models from such a source.
    order
        The order of the list.
    reverse
        Last first.
    """
    with connected() as mesh:
        filters = {
            "architecture": architecture,
            "quantisation": quantisation,
            "tag": tag,
            "source_kind": (source or "").upper(),
        }
        found = list(mesh.models.list(query, **filters, order_by=_ORDERS[order], descending=reverse))
    show_list(found, output, MODEL)
    if not found and output in {"table", "wide"}:
        filtered = query or any(filters.values())
        note(
            "no model was found by these filters; `llamesh models` lists all"
            if filtered
            else "there is no model yet; `llamesh pull` fetches one, `llamesh search` finds some"
        )


def pull(
    source: str = "",
    *,
    name: str = "",
    uuid: str = "",
    sha256: str = "",
    mmproj: str = "",
    lora: tuple[str, ...] = (),
    update: Annotated[bool, Parameter(negative="")] = False,
    wait: bool = True,
    output: Output = "table",
) -> None:
    """Fetch a model into the mesh.

    Parameters
    ----------
    source
        The https address of a GGUF file, hf:OWNER/REPO:Q4_K_M, ollama:NAME:TAG, oci://HOST/REPOSITORY:TAG, s3://NAME/KEY, quant:MODEL, or
        a file of this machine. Empty: the Quant service, by --uuid.
    name
        The model's name; the file's name if not given.
    uuid
        The model's id; made from the name if not given.
    sha256
        What the file's SHA-256 must be; that of the first part of a model in parts.
    mmproj
        The model's multimodal projector, a source like the model's; none for no projector. Default: the one beside the model on the Hub,
        or in its registry.
    lora
        A LoRA adapter of the model, NAME=SOURCE; `llamesh serve --lora NAME` uses it. May be given several times. none: the model has none.
    update
        Fetch a model that is there again: its source has changed, or is another one. It changes in one step, once all bytes are verified.
    wait
        Wait until the model can be served.
    """
    if not source and not uuid:
        raise CommandError(
            "what is to be fetched?",
            hint=f"give {FORMS}",
            code=Exit.USAGE,
        )
    others = Companions.read(mmproj, lora)
    # Without a source, the command waits for a download, which asks the source by itself.
    compare = bool(source)
    with connected() as mesh:
        if source and not is_address(source) and not is_path(source):
            refuse_known(mesh, source)
        if wait:
            model = pulled(
                mesh, source, name=name, uuid=uuid, sha256=sha256, others=others, update=update, compare=compare
            )
            show_one(model, output, MODEL)
            return
        purpose = _purpose(source, uuid, name)
        with (
            fetchable(source, load_profile(), purpose=purpose) as file,
            others.handed(purpose) as handed,
        ):
            asked = mesh.models.pull(
                file.url, uuid=uuid, name=name, sha256=sha256, update=update, compare=compare, **handed.arguments
            )
            file.kept = handed.kept = True
        _tell_change(asked, source)
        download = asked.download
        show_one(download, output, DOWNLOAD)


def pulled(
    mesh: Client,
    source: str,
    *,
    name: str = "",
    uuid: str = "",
    sha256: str = "",
    others: Companions | None = None,
    again: str = "",
    update: bool = False,
    compare: bool = False,
) -> Model:
    """Fetch a model and wait for it. Ctrl-C or a failure of the connection ends the waiting only; `again` is the command to go on with."""
    purpose = _purpose(source, uuid, name)
    with (
        fetchable(source, load_profile(), purpose=purpose) as file,
        (others or Companions()).handed(purpose) as handed,
    ):
        pull = mesh.models.pull(
            file.url, uuid=uuid, name=name, sha256=sha256, update=update, compare=compare, **handed.arguments
        )
        handed.kept = True
        _tell_change(pull, source)
        try:
            with file.fetched_by(pull, again=again):
                return followed(pull)
        finally:
            handed.kept = file.kept


def _purpose(source: str, uuid: str, name: str) -> str:
    """Return the purpose for which files are handed over: the id of the model. The files of an SDK have the same."""
    from llamesh.client.references import uuid_of_pull

    try:
        return uuid_of_pull(source, uuid=uuid, name=name)
    except ValueError:
        # A path that cannot be, which is refused as soon as it is looked at.
        return uuid


def _tell_change(pull: Pull, source: str) -> None:
    """Say that the source of a model that is there has changed, and what fetches it."""
    if pull.download.source_changed:
        again = shlex.join(["llamesh", "pull", source, "--uuid", pull.model_uuid, "--update"])
        note(text(f"the source of {pull.model_uuid} has changed since it was fetched: `{again}` fetches it again"))


def rm(
    *models: ModelName,
    unused: Annotated[bool, Parameter(negative="")] = False,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="")] = False,
) -> int:
    """Remove models that no server uses. A name that fails leaves no other undone.

    Parameters
    ----------
    unused
        Remove all models that no declared server uses, after showing them and asking.
    yes
        Do not ask.
    """
    from llamesh.cli.several import for_each, names_or_all

    names_or_all("llamesh rm", models, "--unused", every=unused)
    with connected() as mesh:

        def remove(model_uuid: str) -> None:
            gone = mesh.models.delete(model_uuid)
            note(f"removed {gone.model_uuid} ({size(gone.size_bytes)})")

        if not unused:
            return for_each(models, lambda name: remove(find_model(mesh, name)))
        from llamesh.cli.disk import agreed, unused_models

        found = unused_models(mesh)
        return for_each([model.model_uuid for model in found], remove) if agreed(found, yes) else Exit.OK
