"""A supervisor of some members is ready when they say so themselves, and its Envoy when it listens, whatever is elsewhere."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace
from pathlib import Path

import pytest

from llamesh.cli.mesh import health, member_health, progress
from llamesh.cli.mesh.running_parts import members_here
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.kit.config import Settings
from llamesh.names import CONTROLLER, ENVOY, GATEWAY
from tests.contract.conftest import StartMember
from tests.contract.patience import until
from tests.unit.test_start_names_what_prevents_it import settings

ADDRESSES = {CONTROLLER: "10.0.0.3:9203"}


def here(own: Settings, *only: str) -> MeshSettings:
    return replace(settings(own.home), run_dir=own.run_dir, only=frozenset(only), member_addresses=ADDRESSES)


async def test_a_member_is_asked_on_its_own_socket(one_settings: Settings, start_member: StartMember) -> None:
    mesh = here(one_settings, GATEWAY)
    assert await asyncio.to_thread(progress.lacking_of, mesh) == ["gateway does not answer"]
    member = await start_member(one_settings, GATEWAY, lambda member: None)
    assert await asyncio.to_thread(member_health.missing, mesh) == {}
    assert await asyncio.to_thread(progress.lacking_of, mesh) == []
    (found,) = await asyncio.to_thread(lambda: list(members_here(mesh)))
    assert (found.check, found.state) == (GATEWAY, "ok")
    member.show_part("", False)  # as while it waits for its database
    assert await asyncio.to_thread(progress.lacking_of, mesh) == ["gateway is starting or stopping"]
    (found,) = await asyncio.to_thread(lambda: list(members_here(mesh)))
    assert (found.state, found.fix) == ("problem", "llamesh logs gateway")
    member.stop()
    await until(member.stopped.is_set)
    assert await asyncio.to_thread(member_health.missing, mesh) == {GATEWAY: "does not answer"}


@pytest.mark.parametrize("state", ["OK", "DOWN", "UNREACHABLE"])
def test_envoy_is_ready_when_it_answers_anything(
    one_settings: Settings, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(health, "ask", lambda *_, **__: health.MeshHealth(state, ()))
    assert progress.lacking_of(here(one_settings, ENVOY)) == []


def test_an_envoy_that_does_not_listen_waits_for_the_controller(
    one_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(health, "ask", refused)
    assert progress.lacking_of(here(one_settings, ENVOY)) == [
        "Envoy does not answer on port 0 (Connection refused); its configuration comes from the controller at 10.0.0.3:9203"
    ]
    assert "controller" not in progress.lacking_of(here(one_settings, ENVOY, CONTROLLER))[-1]


def test_a_folder_without_sockets_is_no_failure(one_settings: Settings, tmp_path: Path) -> None:
    found = member_health.missing(replace(here(one_settings, GATEWAY, CONTROLLER), run_dir=tmp_path / "none"))
    assert found == {GATEWAY: "does not answer", CONTROLLER: "does not answer"}
