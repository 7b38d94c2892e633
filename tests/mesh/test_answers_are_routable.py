"""A server that was declared, renamed or woken can be asked as soon as the answer is there. Real Envoy, no pause in between."""

from __future__ import annotations

from engine.sentence import SENTENCE
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Server, ServerChanges
from tests.mesh.controlled import MODEL, controlled_mesh

ROUNDS = 50


def _routable(server: Server) -> bool:
    return any(
        (condition.type, condition.status) == ("Routable", server_pb2.CONDITION_STATUS_TRUE)
        for condition in server.conditions
    )


async def test_a_request_right_after_the_declaration_is_never_an_unknown_name() -> None:
    statuses: list[int] = []
    async with controlled_mesh() as mesh:
        for turn in range(ROUNDS):
            # A budget of a moment: what is asked here is whether the name is known, not the engine.
            server = await mesh.serve(MODEL, f"model-{turn}", wait=False, wake_budget=0.001)
            assert _routable(server)
            paths = ("/v1/chat/completions", f"/{server.server_uuid}/v1/chat/completions")
            statuses += [(await mesh.chat(path, f"model-{turn}"))[0] for path in paths]
            update = pb.UpdateDeclaredServerRequest(
                server_uuid=server.server_uuid, changes=ServerChanges(model_name=f"new-{turn}")
            )
            await mesh.control.UpdateDeclaredServer(update)
            statuses.append((await mesh.chat(model=f"new-{turn}"))[0])
            await mesh.control.RemoveServer(pb.RemoveServerRequest(server_uuid=server.server_uuid))
    assert len(statuses) == 3 * ROUNDS
    assert 404 not in statuses


async def test_a_request_right_after_the_declaration_is_held_and_answered() -> None:
    async with controlled_mesh() as mesh:
        for turn in range(3):
            server = await mesh.serve(MODEL, f"model-{turn}", wait=False)
            assert await mesh.says(model=f"model-{turn}") == SENTENCE
            await mesh.control.SleepDeclaredServer(pb.SleepDeclaredServerRequest(server_uuid=server.server_uuid))
            await mesh.until_state(server.server_uuid, server_pb2.SERVER_STATE_SLEEPING)
            woken = await mesh.control.WakeDeclaredServer(pb.WakeDeclaredServerRequest(server_uuid=server.server_uuid))
            assert _routable(woken)
            assert await mesh.says(model=f"model-{turn}") == SENTENCE
