"""A FAKE of a Quant service on loopback: GET /models/{model_uuid} and GET /models of quant.proto, as JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.unit.loopback import ALL_PATHS, serving


class FakeQuant:
    """What it has, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.models: dict[str, Any] = {}
        """The answer about each model, as it is sent."""
        self.token = ""
        """The token that it asks for; empty: none."""
        self.answers: list[tuple[int, str]] = []
        """Status, and body or Location, of what is answered first instead."""
        self.asked: list[str] = []

    def add(self, model_uuid: str, object_key: str, **fields: object) -> None:
        self.models[model_uuid] = {"model_uuid": model_uuid, "object_key": object_key, **fields}

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.answers:
            status, text = self.answers.pop(0)
            return web.Response(status=status, headers={"Location": text}) if status == 302 else _json(status, text)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"code": 16}, status=401)
        if request.path == "/models":
            return web.json_response({"models": list(self.models.values())})
        found = self.models.get(request.path.removeprefix("/models/"))
        return web.json_response(found) if found is not None else web.json_response({"code": 5}, status=404)


def _json(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, content_type="application/json")


@asynccontextmanager
async def fake_quant() -> AsyncIterator[FakeQuant]:
    """A running fake on a free port of loopback."""
    state = FakeQuant()
    async with serving({ALL_PATHS: state.handle}) as host:
        state.url = f"http://{host}"
        yield state
