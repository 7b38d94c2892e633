"""`llamesh variants ls, rm`: the quantised variants that the Quant service has published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from llamesh.cli.connection import connected
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import Column, Output, show_list, size, text
from llamesh.cli.printing import note
from llamesh.cli.quality import divergence, same_top_token
from llamesh.cli.quant_connection import calls_quant, quant_connected

if TYPE_CHECKING:
    from llamesh.v1.quant_pb2 import QuantModel

app = App(name="variants", help="Quantised variants that jobs have published.")
VariantId = Annotated[str, Parameter(help="The id of the variant.")]
_REVISION = 40
"""Hexadecimal digits of a commit."""


def short_source(address: str) -> str:
    """Return the address that a job reads, for a column: a commit has its first 12 digits, and of a folder only the name is left."""
    place, at, revision = address.rpartition("@")
    if at and len(revision) == _REVISION:
        return f"{place}@{revision[:12]}"
    return address.rstrip("/").rpartition("/")[2] if address.startswith("file:") else address


VARIANT = (
    Column("MODEL", lambda model: model.model_uuid),
    Column("SIZE", lambda model: size(model.size_bytes)),
    Column("BITS", lambda model: f"{model.report.bits_per_weight:.2f}", spare=True),
    Column("KL", lambda model: divergence(model.report)),
    Column("SAME TOP", lambda model: same_top_token(model.report), spare=True),
    Column("FROM", lambda model: model.source_model_uuid or short_source(model.source), spare=True),
    Column("JOB", lambda model: model.job_id, wide=True),
    Column("SOURCE", lambda model: model.source, wide=True),
    Column("SHA256", lambda model: model.sha256, wide=True),
)


def use_of(variant: QuantModel) -> str:
    """Say how to use a published variant, which is not a model of the mesh yet."""
    address = f"quant:{variant.model_uuid}"
    requests = f'; requests put "model": "{text(variant.name)}"' if variant.name else ""
    return f"`llamesh run {address}` fetches it and talks to it, `llamesh pull {address}` only fetches it{requests}"


@app.default
def show_variants(*, output: Output = "table") -> None:
    """List the published variants."""
    list_variants(output=output)


@app.command(name="ls", alias="list")
def list_variants(*, output: Output = "table") -> None:
    """List the published variants."""
    with quant_connected() as mesh:
        show_list(mesh.quant.variants(), output, VARIANT)


@app.command(name="rm")
def rm_variant(variant: VariantId, /, *variants: VariantId) -> int:
    """Remove variants from the Quant service; a copy that was downloaded stays."""
    from llamesh.cli.several import for_each
    from llamesh.client.errors import ModelNotFound

    with connected() as mesh:

        def remove(name: str) -> None:
            with calls_quant(mesh):
                try:
                    gone = mesh.quant.delete_variant(name)
                except ModelNotFound as error:
                    hint = "`llamesh variants` lists the variants"
                    raise CommandError(error.message, hint=hint, code=Exit.NOT_FOUND) from error
            note(f"removed {gone.model_uuid} ({size(gone.size_bytes)})")

        return for_each([variant, *variants], remove)
