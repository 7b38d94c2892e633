"""Users, keys and contracts that a test makes, and that are removed at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from llamesh.v1 import contract_pb2, download_pb2, gateway_pb2, gateway_pb2_grpc, options_pb2  # noqa: F401 - known to the pool by that
from tests.mesh.conftest import MODEL, Served
from tests.mesh.running import AT_ONCE, RunningMesh, until

PASSWORD = "correct horse"


class People:
    """Makes users, tokens and keys, and changes them, as an administrator does."""

    def __init__(self, mesh: RunningMesh) -> None:
        self.mesh = mesh
        self.contracts: list[str] = []
        self._names: list[str] = []

    def user(self, name: str, role: str = "ROLE_USER", contract: str = "") -> str:
        """A new user's token."""
        body = {"username": name, "password": PASSWORD, "role": role, "contract_id": contract}
        assert self.mesh.call("POST", "/users", json=body).status_code == 200
        self._names.append(name)
        return self.token(name)

    def token(self, name: str) -> str:
        answer = self.mesh.http.post(
            self.mesh.url("gateway", "/auth/token"), json={"username": name, "password": PASSWORD}
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def key(self, token: str, *scopes: str) -> dict[str, Any]:
        """A key made with a token: `{"key": ..., "token": ...}`."""
        body = {"display_name": "test", "scopes": scopes, "expire_days": 3650}
        answer = self.mesh.http.post(self.mesh.url("contract", "/keys"), json=body, headers=bearer(token))
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def contract(self, **limits: Any) -> str:
        answer = self.mesh.call("POST", "/contracts", "contract", json={"display_name": "test", **limits})
        self.contracts.append(answer.json()["contract_id"])
        return self.contracts[-1]

    def change(self, name: str, **changed: Any) -> None:
        assert self.mesh.call("PATCH", f"/users/{name}", json=changed).status_code == 200

    def remove(self, name: str) -> None:
        assert self.mesh.call("DELETE", f"/users/{name}").status_code == 200
        self._names.remove(name)

    def close(self) -> None:
        """Leave nothing behind."""
        for name in list(self._names):
            self.remove(name)
        for contract_id in self.contracts:
            answer = self.mesh.call("DELETE", f"/contracts/{contract_id}", "contract")
            assert answer.status_code == 200, answer.text


def lag(counts: Callable[[], bool]) -> float:
    """Seconds from now until the last request was sent that was not yet answered as it should be. Requests are sent until one is."""
    began = last = time.monotonic()

    def asked() -> bool:
        nonlocal last
        sent = time.monotonic()
        if counts():
            return True
        last = sent
        return False

    until(asked, AT_ONCE, "a change to count")
    return last - began


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def infer(served: Served, token: str, tokens: int = 1) -> int:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": tokens}
    answer = served.mesh.http.post(
        served.mesh.url("inference", "/v1/chat/completions"), json=body, headers=bearer(token)
    )
    return answer.status_code


def grpc_reason(error: grpc.RpcError) -> str:
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(details).details:
        if detail.Unpack(info):
            return info.reason
    return ""
