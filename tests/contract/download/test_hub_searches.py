"""`SearchHub` against a FAKE Hub: what is found, whether it fits, and what a Hub that fails, hangs or lies costs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.v1 import (
    contract_pb2_grpc,
    controller_pb2,
    controller_pb2_grpc,
    server_pb2,
)
from llamesh.v1 import download_pb2 as pb
from tests.contract.conftest import StartMember
from tests.contract.download.conftest import TINY, OpenWith, Service
from tests.contract.rich_status import refused
from tests.unit.fake_hub import COMMIT, FakeHub, Repository, fake_hub

GIB = 1 << 30
RESERVE = GIB


class FakeMembers(controller_pb2_grpc.ControllerServiceServicer, contract_pb2_grpc.ContractServiceServicer):
    """FAKE: a machine with 8 GiB, of which engines may have 2 now, and an estimate of 3 GiB for every model."""

    def __init__(self) -> None:
        self.estimated: list[str] = []

    async def GetCapacity(self, request: Any, context: Any) -> controller_pb2.Capacity:
        node = controller_pb2.NodeCapacity(free_bytes=2 * GIB, total_bytes=8 * GIB + RESERVE)
        return controller_pb2.Capacity(nodes=[node])

    async def EstimateMemory(self, request: Any, context: Any) -> server_pb2.MemoryEstimate:
        self.estimated.append(request.model_uuid)
        return server_pb2.MemoryEstimate(weights_bytes=GIB, kv_cache_bytes=GIB, overhead_bytes=GIB)


@pytest.fixture
def has_controller() -> bool:
    """The members of this module are the controller."""
    return False


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with fake_hub() as state:
        state.repositories["ada/tiny-GGUF"] = Repository(
            {"tiny-Q4_K_M.gguf": TINY, "tiny-Q8_0.gguf": TINY + b"x", "tiny-F16.gguf": TINY + b"y"},
            downloads=10,
            tags=["gguf", "license:mit"],
            sizes={"tiny-Q8_0.gguf": 7 * GIB, "tiny-F16.gguf": 9 * GIB},
        )
        state.repositories["ben/tiny-GGUF"] = Repository(
            {f"big-0000{number}-of-00002.gguf": TINY for number in (1, 2)}, downloads=20, gated=True
        )
        state.repositories["ben/other"] = Repository({"other.safetensors": TINY}, tags=["safetensors"])
        state.readers.add("hf_right")
        yield state


@pytest.fixture
async def hub_service(hub: FakeHub, one_settings: Settings, open_with: OpenWith) -> Service:
    return await open_with(
        one_settings, hf_endpoint=hub.url, hf_token=SecretStr("hf_right"), memory_reserve_bytes=RESERVE
    )


@pytest.fixture
async def members(hub_service: Service, start_member: StartMember) -> FakeMembers:
    fake = FakeMembers()
    await start_member(
        hub_service.settings,
        "controller",
        lambda member: controller_pb2_grpc.add_ControllerServiceServicer_to_server(fake, member.server),
    )
    await start_member(
        hub_service.settings,
        "contract",
        lambda member: contract_pb2_grpc.add_ContractServiceServicer_to_server(fake, member.server),
    )
    return fake


async def searched(service: Service, query: str = "tiny", most: int = 0) -> pb.SearchHubResponse:
    request = pb.SearchHubRequest(query=query, max_repositories=most)
    return await service.downloads.SearchHub(request, metadata=service.caller)


async def test_repositories_come_with_their_models_sizes_and_whether_they_fit(
    hub: FakeHub, hub_service: Service, members: FakeMembers
) -> None:
    answer = await searched(hub_service, "TINY gguf")
    assert (answer.free_bytes, answer.total_bytes) == (2 * GIB, 8 * GIB)
    ben, ada = answer.repositories
    assert (ben.repository, ben.downloads, ben.gated, ada.license, ada.revision) == (
        "ben/tiny-GGUF",
        20,
        True,
        "mit",
        COMMIT,
    )
    assert [(model.source, model.size_bytes, model.fit) for model in ada.models] == [
        ("hf:ada/tiny-GGUF:F16", 9 * GIB, pb.HUB_FIT_NO),
        ("hf:ada/tiny-GGUF:Q4_K_M", len(TINY), pb.HUB_FIT_NOW),
        ("hf:ada/tiny-GGUF:Q8_0", 7 * GIB, pb.HUB_FIT_IF_OTHERS_STOP),
    ]
    assert {token for _, token in hub.asked} == {"Bearer hf_right"}
    # What is shown can be fetched.
    assert (await hub_service.fetched("m1", ada.models[1].source)).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_a_model_of_the_catalogue_is_named_and_judged_by_its_estimate(
    hub_service: Service, members: FakeMembers
) -> None:
    await hub_service.fetched("m1", "hf:ada/tiny-GGUF:Q4_K_M")
    here = [model for each in (await searched(hub_service)).repositories for model in each.models if model.model_uuid]
    # The parts of a split model are compared as a whole only.
    assert [(model.model_uuid, model.needed_bytes, model.fit) for model in here] == [
        ("m1", 3 * GIB, pb.HUB_FIT_IF_OTHERS_STOP)
    ]
    assert members.estimated == ["m1"]


async def test_without_the_controller_sizes_are_shown_and_nothing_is_guessed(
    hub_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.memory_fits.ASK_SECONDS", 0.2)
    answer = await searched(hub_service)
    assert (answer.free_bytes, answer.total_bytes) == (0, 0)
    found = [model for each in answer.repositories for model in each.models]
    assert {model.fit for model in found} == {pb.HUB_FIT_UNSPECIFIED}
    assert all(model.size_bytes for model in found)


async def test_the_number_of_repositories_is_bounded(hub: FakeHub, hub_service: Service, members: FakeMembers) -> None:
    hub.repositories |= {f"cy/tiny-{number}": Repository({"a.gguf": TINY}) for number in range(30)}
    assert len((await searched(hub_service)).repositories) == 5
    assert len((await searched(hub_service, most=20)).repositories) == 20
    # A Hub that sends more than was asked for gets no more requests.
    hub.asked.clear()
    hub.found = [{"id": f"cy/tiny-{number}"} for number in range(30)]
    assert len((await searched(hub_service, most=2)).repositories) == 2
    assert len(hub.asked) == 3
    for query, most in (("", 0), ("x" * 129, 0), ("x", 21), ("x", -1)):
        with refused("INVALID_FIELD"):
            await searched(hub_service, query, most)


async def test_a_repository_that_is_not_listed_says_why_and_costs_no_other(
    hub: FakeHub, hub_service: Service, members: FakeMembers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.hub_search.SEARCH_SECONDS", 3.0)
    hub.repositories["cy/tiny-slow"] = Repository({"a.gguf": TINY}, downloads=99, hangs=True)
    hub.found = [{"id": name} for name in ("cy/tiny-slow", "no/tiny", "ada/tiny-GGUF")]
    slow, missing, good = (await searched(hub_service)).repositories
    assert "did not list it within 3 s" in slow.problem
    assert "has no repository no/tiny" in missing.problem
    assert (good.problem, len(good.models)) == ("", 3)


async def test_a_query_is_sent_as_it_is(hub: FakeHub, hub_service: Service, members: FakeMembers) -> None:
    assert not (await searched(hub_service, "tiny&limit=100#/../")).repositories
    assert hub.asked[0][0].startswith("/api/models?search=tiny%26limit%3D100%23%2F..%2F&filter=gguf&")


@pytest.mark.parametrize("answer", [{}, "text", [1], {"error": "no"}])
async def test_what_does_not_answer_like_the_hub_is_said(hub: FakeHub, hub_service: Service, answer: Any) -> None:
    hub.found = answer
    with refused("SOURCE_UNAVAILABLE") as refusal:
        await searched(hub_service)
    assert "does not answer like the Hugging Face Hub: check HF_ENDPOINT" in refusal.message


async def test_without_network_the_error_names_the_host_and_the_remedy(
    one_settings: Settings, open_with: OpenWith
) -> None:
    service = await open_with(one_settings, hf_endpoint="https://hub.invalid")
    with refused("SOURCE_UNAVAILABLE") as refusal:
        await searched(service)
    assert "hub.invalid cannot be searched: the host hub.invalid cannot be found" in refusal.message
    assert "HF_ENDPOINT" in refusal.message


async def test_a_hub_that_hangs_is_given_up(
    hub: FakeHub, hub_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.hub_search.SEARCH_SECONDS", 0.5)

    async def hanging(*_: object) -> None:
        await hub.end.wait()

    monkeypatch.setattr("services.download.sources.hub.HubSource.search", hanging)
    with refused("SOURCE_UNAVAILABLE") as refusal:
        await searched(hub_service)
    assert "no answer within" in refusal.message


async def test_a_redirect_to_a_private_host_is_refused(hub: FakeHub, hub_service: Service) -> None:
    hub.redirect = "https://10.0.0.1/api/models"
    with refused("SOURCE_REFUSED"):
        await searched(hub_service)
