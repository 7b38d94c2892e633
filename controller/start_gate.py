"""Removes from a plan the starts that must wait for memory or for other starts.

Invariant: the starts that remain were granted by the `StartScheduler`; those that were removed are in `history.pending_starts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from controller.actions import Decision, Start
from controller.declared import DeclaredServer
from controller.runtimes import Engine
from controller.server_history import ServerHistory
from controller.starts import NotEnoughMemory, StartNow, StartScheduler


class StartGate:
    """Requests every start of a plan from the scheduler."""

    def __init__(self, starts: StartScheduler) -> None:
        self._starts = starts

    def admit(
        self, decision: Decision, declared: DeclaredServer, engines: Sequence[Engine], history: ServerHistory
    ) -> Decision:
        """Return the decision without the starts that must wait. If an old engine leaves no room, mark it to be replaced in place."""
        server_uuid, footprint = declared.server_uuid, declared.footprint
        self._starts.observe(server_uuid, footprint, engines)
        replicas = [action.replica for action in decision.actions if isinstance(action, Start)]
        granted = self._starts.request(server_uuid, replicas, footprint)
        history.pending_starts = {
            replica: pending for replica, pending in granted.items() if not isinstance(pending, StartNow)
        }
        no_room = any(isinstance(pending, NotEnoughMemory) for pending in history.pending_starts.values())
        if no_room and self._starts.shortage_without(server_uuid, footprint) is None:
            history.make_room(engines)
        actions = [
            action
            for action in decision.actions
            if not (isinstance(action, Start) and action.replica in history.pending_starts)
        ]
        return replace(decision, actions=tuple(actions))
