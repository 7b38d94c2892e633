"""What the client and the command say of a model that is there already: another owner's, one whose source has changed, one by its name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from llamesh.cli.connection import check_gateway
from llamesh.cli.context_sizes import model_of
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.client import errors
from llamesh.client.sync import Client
from llamesh.v1 import download_pb2, gateway_pb2, model_pb2, server_pb2
from tests.contract.fakes import FakeDownloads, FakeGateway, refuse

Capture = pytest.CaptureFixture[str]
PRESENT = "hf:eve/tiny-GGUF:Q8_0"


class Downloads(FakeDownloads):
    """Has the model `tiny-Q8_0` of another owner, and refuses others under its id."""

    changed = False
    ended = ""

    def StartDownload(self, request: Any, context: Any) -> download_pb2.Download:
        metadata = {"modelUuid": request.model_uuid, "source": PRESENT, "state": "SUCCEEDED"}
        if request.model_uuid == "tiny-Q8_0" and request.source != PRESENT:
            refuse(context, grpc.StatusCode.ALREADY_EXISTS, "DOWNLOAD_CONFLICT", "it differs", metadata=metadata)
        answer = super().StartDownload(request, context)
        answer.source_changed = self.changed and request.compare
        return answer

    def PauseDownload(self, request: Any, context: Any) -> download_pb2.Download:
        metadata = {"modelUuid": request.model_uuid, "state": self.ended}
        refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "DOWNLOAD_ENDED", "it has ended", metadata=metadata)
        raise AssertionError


class Gateway(FakeGateway):
    """Knows models by their ids only."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds_left: list[float] = []
        """How long the callers wait for the pages of the list."""

    def ListModels(self, request: Any, context: Any) -> gateway_pb2.ListModelsResponse:
        self.seconds_left.append(context.time_remaining())
        return super().ListModels(request, context)

    def GetModel(self, request: Any, context: Any) -> model_pb2.Model:
        if " " in request.model_uuid:
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "model_uuid: does not match")
        if request.model_uuid != "m3":
            refuse(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", f"no model {request.model_uuid}")
        return super().GetModel(request, context)


@pytest.fixture
def downloads() -> Downloads:
    return Downloads()


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def mesh(url: str) -> Iterator[Client]:
    with Client(url, "token") as client:
        yield client


def test_the_model_of_another_owner_gets_the_owner_in_front(mesh: Client, downloads: Downloads) -> None:
    assert mesh.models.pull("hf:ada/tiny-GGUF:q8_0").model_uuid == "ada-tiny-Q8_0"
    assert downloads.requests[-1].name == "ada-tiny:Q8_0"
    assert mesh.models.pull(PRESENT).model_uuid == "tiny-Q8_0"


@pytest.mark.parametrize("given", [{"uuid": "tiny-Q8_0"}, {"name": "tiny:Q8_0"}])
def test_a_name_that_was_given_is_kept(mesh: Client, given: dict[str, str]) -> None:
    with pytest.raises(errors.DownloadConflict):
        mesh.models.pull("hf:ada/tiny-GGUF:Q8_0", **given)


@pytest.mark.usefixtures("url")
def test_a_conflict_names_both_ways_out(capsys: Capture) -> None:
    assert run(["pull", "hf:eve/tiny-GGUF@v2:Q8_0"]) == Exit.FAILED
    shown = capsys.readouterr().err
    assert "`llamesh pull SOURCE --name NAME` makes it another model" in shown
    assert "`llamesh pull SOURCE --uuid tiny-Q8_0 --update` replaces the first one" in shown


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize("changed", [True, False])
def test_a_changed_source_is_said_with_what_fetches_it(downloads: Downloads, capsys: Capture, changed: bool) -> None:
    downloads.changed = changed
    assert run(["pull", PRESENT, "--no-wait"]) == Exit.OK
    said = (
        f"the source of tiny-Q8_0 has changed since it was fetched: `llamesh pull {PRESENT} --uuid tiny-Q8_0 --update`"
    )
    assert (said in capsys.readouterr().err) is changed
    assert run(["pull", PRESENT, "--update", "--no-wait"]) == Exit.OK
    assert [request.update for request in downloads.requests] == [False, True]


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize(
    ("state", "hint"),
    [("SUCCEEDED", "nothing is left to do: `llamesh describe m1`"), ("FAILED", "`llamesh downloads retry m1` fetches")],
)
def test_a_download_that_has_ended_names_what_is_left_to_do(
    downloads: Downloads, capsys: Capture, state: str, hint: str
) -> None:
    downloads.ended = state
    downloads._started["m1"] = download_pb2.Download(model_uuid="m1")
    assert run(["downloads", "pause", "m1"]) == Exit.REFUSED
    assert f"hint: {hint}" in capsys.readouterr().err


def test_a_model_is_found_by_its_name(mesh: Client) -> None:
    assert mesh.models.get("name3").model_uuid == "m3"


@pytest.mark.parametrize("word", ["nobody", "no id has blanks"])
def test_a_word_that_names_nothing_is_not_found_within_the_deadline(mesh: Client, gateway: Gateway, word: str) -> None:
    with pytest.raises(errors.ModelNotFound):
        mesh.models.get(word, timeout=9)
    assert len(gateway.seconds_left) == 3
    assert max(gateway.seconds_left) <= 9


@pytest.mark.parametrize("model", ["name3", "a name", model_pb2.Model(model_uuid="name3")])
def test_an_id_is_not_looked_up_as_a_name(mesh: Client, gateway: Gateway, model: str | model_pb2.Model) -> None:
    with pytest.raises(errors.ModelNotFound):
        mesh.models.get(model, by_name=not isinstance(model, str))
    assert gateway.listed == []


def test_the_model_of_a_server_and_the_port_of_a_mesh_take_one_call(mesh: Client, gateway: Gateway) -> None:
    assert model_of(mesh, server_pb2.Server(model_uuid="name3")) is None
    check_gateway(mesh, 5)
    assert gateway.listed == []


def test_a_mesh_without_a_quant_service_says_what_starts_it(mesh: Client) -> None:
    for ask in (lambda: list(mesh.quant.variants()), lambda: mesh.quant.job("j"), lambda: list(mesh.quant.watch())):
        with pytest.raises(errors.MeshError, match="the mesh runs no Quant service") as caught:
            ask()
        assert "`llamesh up --quant`" in caught.value.remedy
