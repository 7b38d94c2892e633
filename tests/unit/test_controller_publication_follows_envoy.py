"""An engine is published or withdrawn only after Envoy has acknowledged it or is absent."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from controller.publication import Publication
from controller.xds.clusters import ServerEndpoints
from controller.xds.serving import ControlPlane


class Envoy(ControlPlane):
    """FAKE: a control plane whose Envoy acknowledges when the test tells it to."""

    def __init__(self) -> None:
        super().__init__()
        self.takes = asyncio.Event()

    async def acknowledged(self, server_uuid: str, timeout: float) -> bool:
        try:
            await asyncio.wait_for(self.takes.wait(), timeout)
        except TimeoutError:
            return False
        return True


def endpoints(*instances: str) -> ServerEndpoints:
    return ServerEndpoints("a", (), tuple(f"/{name}.sock" for name in instances), 4)


async def test_an_engine_comes_and_goes_by_envoys_word() -> None:
    envoy, told = Envoy(), asyncio.Event()
    publication = Publication("a", envoy, lambda _: told.set())
    publication.publish(endpoints("one"), ["one"])
    assert not publication.is_published("one")
    envoy.takes.set()
    await asyncio.wait_for(told.wait(), 5)
    assert publication.is_published("one")
    assert not publication.is_withdrawn("one")

    envoy.takes.clear()
    told.clear()
    publication.publish(endpoints("two"), ["two"])
    assert not publication.is_published("one"), "it is not to be counted on any more"
    assert not publication.is_withdrawn("one"), "requests may still come"
    envoy.takes.set()
    await asyncio.wait_for(told.wait(), 5)
    assert publication.is_withdrawn("one")
    assert publication.is_published("two")
    await publication.close()


async def test_a_server_is_not_known_under_a_new_name_before_envoy_says_so() -> None:
    envoy, told = Envoy(), asyncio.Event()
    publication = Publication("a", envoy, lambda _: told.set())
    envoy.takes.set()
    publication.publish(endpoints("one"), ["one"])
    await asyncio.wait_for(told.wait(), 5)
    envoy.takes.clear()
    told.clear()
    publication.publish(replace(endpoints("one"), model_names=("new",)), ["one"])
    assert not publication.is_published("one")
    envoy.takes.set()
    await asyncio.wait_for(told.wait(), 5)
    assert publication.is_published("one")
    await publication.close()


async def test_endpoints_are_withdrawn_if_no_envoy_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.publication.ACK_SECONDS", 0.01)
    told = asyncio.Event()
    publication = Publication("a", Envoy(), lambda _: told.set())
    assert not publication.is_withdrawn("one"), "nothing was said yet, and an Envoy may know it from before"
    publication.publish(endpoints(), [])
    assert not publication.is_withdrawn("one")
    await asyncio.wait_for(told.wait(), 5)
    assert not publication.envoy_connected
    assert publication.is_withdrawn("one")
    await publication.close()
