"""A controller that stops does not wait for Envoy, whose stream has no end of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from controller.xds.serving import ControlPlane
from controller.xds.snapshot import CDS
from llamesh.kit.config import Settings
from tests.contract.patience import PATIENCE
from tests.unit.test_control_plane_over_grpc import Client, server


async def test_the_stream_ends_with_the_drain_and_envoy_is_told_to_come_back(
    one_settings: Settings, start_member: Any, until: Any
) -> None:
    control = ControlPlane()
    settings = one_settings.model_copy(update={"drain_seconds": 10 * PATIENCE})
    member = await start_member(settings, "controller", lambda member: control.add_to(member.server))
    control.set_server(server("a"))
    control.publish()
    async with Client(f"unix:{settings.socket('controller')}") as envoy:
        await envoy.ask(CDS)
        await envoy.take(await envoy.read())
        await until(lambda: control.stats.acknowledged)
        member.stop()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await envoy.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(member.stopped.wait(), PATIENCE)
    assert control.stats.connected == 0
