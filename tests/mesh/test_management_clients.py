"""The management API is the same through REST, gRPC, gRPC-Web and reflection; bad input gets a typed error that names the field."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.client import errors
from llamesh.client.sync import Client
from llamesh.v1 import contract_pb2, contract_pb2_grpc, download_pb2, download_pb2_grpc, gateway_pb2, gateway_pb2_grpc
from tests.mesh.running import RunningMesh
from tests.mesh.test_reference_calls import reasons


@pytest.fixture
def channel(mesh: RunningMesh) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{mesh.ports['gateway']}") as found:
        yield found


def signed(mesh: RunningMesh) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {mesh.token}"),)


def test_every_public_service_answers_a_grpc_client_at_one_address(mesh: RunningMesh, channel: grpc.Channel) -> None:
    gateway = gateway_pb2_grpc.GatewayServiceStub(channel)
    token = gateway.CreateToken(gateway_pb2.CreateTokenRequest(username="admin", password="admin"))
    metadata = (("authorization", f"Bearer {token.access_token}"),)
    models = gateway.ListModels(gateway_pb2.ListModelsRequest(), metadata=metadata).models
    assert "sentence" in [model.model_uuid for model in models]
    check = contract_pb2_grpc.ContractServiceStub(channel).Check(
        contract_pb2.CheckRequest(model_uuid="sentence"), metadata=metadata
    )
    assert check.allowed
    download = download_pb2_grpc.DownloadServiceStub(channel).GetDownload(
        download_pb2.GetDownloadRequest(model_uuid="sentence"), metadata=metadata
    )
    assert download.state == download_pb2.DOWNLOAD_STATE_SUCCEEDED


def test_a_grpc_error_carries_reason_and_remedy(mesh: RunningMesh, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        gateway_pb2_grpc.GatewayServiceStub(channel).GetModel(
            gateway_pb2.GetModelRequest(model_uuid="nothing"), metadata=signed(mesh)
        )
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    trailers = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info, remedy = error_details_pb2.ErrorInfo(), error_details_pb2.LocalizedMessage()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == ("MODEL_NOT_FOUND", "llamesh", {"modelUuid": "nothing"})
    assert status.details[1].Unpack(remedy)
    assert "GET /models" in remedy.message


def test_a_grpc_client_without_token_is_unauthenticated(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        gateway_pb2_grpc.GatewayServiceStub(channel).ListModels(gateway_pb2.ListModelsRequest())
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_internal_services_cannot_be_reached(mesh: RunningMesh, channel: grpc.Channel) -> None:
    for method in (
        "/llamesh.v1.SigningKeyService/ListSigningKeys",
        "/llamesh.v1.ControllerService/ListDeclaredServers",
        "/llamesh.v1.CatalogueService/ListCatalogueModels",
        "/llamesh.v1.AdmissionService/Grant",
        "/envoy.service.auth.v3.Authorization/Check",
    ):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method)(b"", metadata=signed(mesh))
        assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND), method


def test_an_unknown_call_is_refused_with_a_reason(mesh: RunningMesh, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/llamesh.v1.GatewayService/Nope")(b"", metadata=signed(mesh))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "There is no such call" in caught.value.details()
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "NOT_IMPLEMENTED"


def test_reflection_needs_no_token_and_knows_the_public_services(channel: grpc.Channel) -> None:
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "llamesh.v1.GatewayService" in services


def test_grpc_web_works(mesh: RunningMesh) -> None:
    message = gateway_pb2.ListModelsRequest().SerializeToString()
    answer = mesh.call(
        "POST",
        "/llamesh.v1.GatewayService/ListModels",
        content=b"\0" + len(message).to_bytes(4, "big") + message,
        headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1"},
    )
    assert answer.status_code == 200
    length = int.from_bytes(answer.content[1:5], "big")
    assert gateway_pb2.ListModelsResponse.FromString(answer.content[5 : 5 + length]).models
    assert b"grpc-status:0" in answer.content[5 + length :].replace(b" ", b"")


def test_a_watch_begins_with_the_present_state_and_can_be_resumed(mesh: RunningMesh) -> None:
    headers = {"authorization": f"Bearer {mesh.token}"}
    seen: list[dict[str, Any]] = []
    with mesh.http.stream("GET", mesh.url("gateway", "/watch?kinds=WATCH_KIND_MODELS"), headers=headers) as stream:
        assert stream.status_code == 200
        for line in stream.iter_lines():
            seen.append(json.loads(line))
            if "synced" in seen[-1]:
                break
    assert "sentence" in [item["model"]["model_uuid"] for item in seen if "model" in item]
    token = seen[-1]["resume_token"]
    mesh.add_model("watched", "watched.gguf")
    path = f"/watch?kinds=WATCH_KIND_MODELS&resume_token={token}"
    with mesh.http.stream("GET", mesh.url("gateway", path), headers=headers) as stream:
        for line in stream.iter_lines():
            if "model" in (event := json.loads(line)):
                break
    assert event["model"]["model_uuid"] == "watched"


def test_the_command_and_the_sdk_set_the_servers_own_timeout(
    mesh: RunningMesh, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("LLAMESH_URL", mesh.url("gateway", ""))
    monkeypatch.setenv("LLAMESH_TOKEN", mesh.token)

    def answer(*words: str) -> dict[str, Any]:
        assert run([*words, "--output", "json"]) == Exit.OK
        return dict(json.loads(capsys.readouterr().out))

    assert answer("fit", "sentence", "--timeout", "30")["runtime_params"] == "--timeout 30"
    served = answer("serve", "sentence", "--name", "impatient", "--timeout", "30")
    with Client() as client:
        try:
            assert client.servers.get(served["server_uuid"]).spec.parameters.timeout == 30
            check = client.check("sentence", parameters={"timeout": 30}, ctx_size=512, timeout=60.0)
            assert (check.allowed, check.runtime_params) == (True, "--ctx-size 512 --timeout 30")
        finally:
            client.servers.stop(served["server_uuid"])


def test_a_server_with_a_draft_model_answers_and_keeps_it_from_removal(mesh: RunningMesh) -> None:
    mesh.add_model("small", "small.gguf")
    flags = "-md small\n--ctx-size\t2048 -np 1\r\n--alias drafted -nocb --threads -1 -ngl auto --spec-draft-n-max 8\n"
    with Client(mesh.url("gateway", ""), mesh.token) as client:
        server = client.servers.serve("sentence", runtime_params=flags)
        try:
            assert server.model_name == "drafted"
            assert server.runtime_params == (
                "--ctx-size 2048 --parallel 1 --no-cont-batching --model-draft small --spec-draft-n-max 8"
            )
            client.servers.wait_ready(server)
            body = {"model": "drafted", "messages": [{"role": "user", "content": "Hello!"}]}
            answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=body).json()
            assert answer["timings"]["draft_n_accepted"] > 0
            with pytest.raises(errors.ModelInUse, match=server.server_uuid):
                client.models.delete("small")
        finally:
            client.servers.stop(server)
        client.models.delete("small")


def servers(mesh: RunningMesh) -> set[str]:
    """The ids of all servers. One that an earlier test has stopped may leave at any moment."""
    return {item["server_uuid"] for item in mesh.call("GET", "/status").json()["servers"]}


BAD_CALLS = [
    ("POST", "/serve", b"{", 400),
    ("POST", "/serve", b"[]", 400),
    ("POST", "/serve", b'"x"', 400),
    ("POST", "/serve", b"{}", 400),
    ("POST", "/serve", b'{"model_uuid":""}', 400),
    ("POST", "/serve", b'{"model_uuid":"sentence","no_such_field":1}', 400),
    ("POST", "/serve", b'{"model_uuid":"sentence","replicas":-1}', 400),
    ("POST", "/serve", b'{"model_uuid":"sentence","replicas":99999999999999999999}', 400),
    ("POST", "/serve", b'{"model_uuid":"sentence","replicas":"many"}', 400),
    ("POST", "/serve", b'{"model_uuid":"sentence","replicas":1001}', 400),
    ("POST", "/serve", b'{"model_uuid":"../../etc/passwd"}', 400),
    ("POST", "/serve", b'{"model_uuid":"sentence","model_name":"a\\nb"}', 400),
    ("POST", "/serve", b'{"model_uuid":"sentence","runtime_params":"--api-key-file /etc/passwd"}', 400),
    ("POST", "/serve", b'{"model_uuid":"sentence","runtime_params":"--ctx-size 2K"}', 400),
    ("POST", "/serve", b'{"model_uuid":"sentence","idle_sleep":"soon"}', 400),
    ("POST", "/serve", b'{"model_uuid":"sentence","idle_sleep":"-5s"}', 400),
    ("POST", "/serve", b'{"model_uuid":"nothing"}', 404),
    ("POST", "/serve", b'{"model_uuid":"sentence","replicas":6}', 403),
    ("POST", "/serve", b'{"model_uuid":"sentence","namespace":"kube-system"}', 403),
    ("GET", "/models?no_such_parameter=1", None, 400),
    ("GET", "/models?page_size=-1", None, 400),
    ("GET", "/models?page_size=x", None, 400),
    ("GET", "/models?page_token=%7B%7D", None, 400),
    ("GET", "/models/nothing", None, 404),
    ("GET", "/servers/nothing", None, 404),
    ("GET", "/nowhere", None, 404),
    ("PATCH", "/models", None, 404),
    ("DELETE", "/stop/nothing", None, 404),
    ("POST", "/users", b'{"username":"","password":"12345678"}', 400),
    ("POST", "/users", b'{"username":"a b","password":"12345678"}', 400),
    ("POST", "/users", b'{"username":"ada","password":"short"}', 400),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), BAD_CALLS)
def test_bad_input_gets_a_typed_error_and_changes_nothing(
    mesh: RunningMesh, method: str, path: str, body: bytes | None, status: int
) -> None:
    before = servers(mesh)
    answer = mesh.call(method, path, content=body, headers={"content-type": "application/json"} if body else {})
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (status, "application/json"), (
        answer.text
    )
    error = answer.json()
    assert error["code"]
    assert error["message"]
    assert servers(mesh) <= before


@pytest.mark.parametrize(
    ("body", "reason", "named"),
    [
        ({"model_uuid": "sentence", "runtime_params": "--tools all"}, "PARAMETER_UNKNOWN", "--tools"),
        ({"model_uuid": "sentence", "runtime_params": "--temp nan"}, "PARAMETER_INVALID", "--temp"),
        ({"model_uuid": "sentence", "replicas": 6}, "TOO_MANY_REPLICAS", "5"),
        ({"model_uuid": "sentence", "replicas": 5000}, "INVALID_FIELD", "replicas"),
    ],
)
def test_a_refusal_names_the_wrong_field(mesh: RunningMesh, body: dict[str, Any], reason: str, named: str) -> None:
    answer = mesh.call("POST", "/serve", json=body).json()
    assert reasons(answer) == [reason]
    assert named in json.dumps(answer)


def test_a_repeated_request_id_serves_once(mesh: RunningMesh) -> None:
    body = {"model_uuid": "sentence", "model_name": "once", "request_id": "5f4dcc3b-aa76-4d61-9f83-7deb882cf99a"}
    first, second = (mesh.call("POST", "/serve", json=body).json() for _ in range(2))
    try:
        assert first["server_uuid"] == second["server_uuid"]
    finally:
        mesh.call("DELETE", f"/stop/{first['server_uuid']}")


def test_a_request_id_is_refused_for_another_request(mesh: RunningMesh) -> None:
    body = {"model_uuid": "sentence", "model_name": "reused", "request_id": "7b1d"}
    server = mesh.call("POST", "/serve", json=body).json()
    try:
        other = mesh.call("POST", "/serve", json=body | {"runtime_params": "--ctx-size 512"})
        assert (other.status_code, reasons(other.json())) == (409, ["REQUEST_ID_REUSED"])
    finally:
        mesh.call("DELETE", f"/stop/{server['server_uuid']}")


def fields_at_fault(error: dict[str, Any]) -> list[str]:
    """The fields that a REST error names; there is one spelling."""
    assert "fieldViolations" not in json.dumps(error)
    return [item["field"] for detail in error["details"] for item in detail.get("field_violations", ())]


def test_rest_keeps_if_match_or_refuses_it(mesh: RunningMesh) -> None:
    server = mesh.call("POST", "/serve", json={"model_uuid": "sentence", "model_name": "matched"}).json()
    path = f"/servers/{server['server_uuid']}"
    try:
        stale = {"if-match": '"99"'}
        for method, at, body in (
            ("PATCH", path, {"metered": True}),
            ("POST", f"{path}:scale", {"replicas": 1}),
            ("DELETE", path, None),
        ):
            refused = mesh.call(method, at, json=body, headers=stale)
            assert (refused.status_code, reasons(refused.json())) == (409, ["ETAG_MISMATCH"])
        changed = mesh.call("PATCH", path, json={"metered": True}, headers={"if-match": f'"{server["etag"]}"'})
        assert changed.status_code == 200, changed.text
        for method, at in (("GET", path), ("POST", f"{path}:sleep")):
            refused = mesh.call(method, at, headers=stale)
            assert (refused.status_code, fields_at_fault(refused.json())) == (400, ["If-Match"])
        stopped = mesh.call("DELETE", path, headers={"if-match": f'"{changed.json()["etag"]}"'})
        assert stopped.status_code == 200, stopped.text
    finally:
        mesh.call("DELETE", path)


@pytest.mark.parametrize(
    ("service", "path"),
    [
        ("gateway", "/models"),
        ("gateway", "/servers"),
        ("gateway", "/users"),
        ("contract", "/contracts"),
        ("contract", "/keys"),
        ("contract", "/usage"),
        ("contract", "/decisions"),
        ("download", "/downloads"),
    ],
)
def test_a_page_token_that_a_caller_has_made_is_refused_by_every_list(
    mesh: RunningMesh, service: str, path: str
) -> None:
    mine = base64.urlsafe_b64encode(b'["9f86d081884c",1e400,"\\ud800"]').decode()
    for token in ("x", mine, "A" * 2048):
        answer = mesh.call("GET", f"{path}?page_token={token}", service)
        assert (answer.status_code, reasons(answer.json())) == (400, ["INVALID_PAGE_TOKEN"])
        assert fields_at_fault(answer.json()) == ["page_token"]


def test_no_answer_reveals_the_path_of_a_model(mesh: RunningMesh) -> None:
    said = mesh.call("GET", "/models").text + mesh.call("GET", "/downloads", "download").text
    assert str(mesh.home) not in said
    assert "file:" not in said


def test_a_server_that_does_not_fit_is_refused_with_numbers(mesh: RunningMesh) -> None:
    body = {"model_uuid": "sentence", "runtime_params": "--ctx-size 1048576 --parallel 1 --cache-ram 1048576"}
    answer = mesh.call("POST", "/check", "contract", json=body).json()
    assert answer["allowed"] is False
    refusal = next(item for item in answer["refusals"] if item["reason"] == "DOES_NOT_FIT")
    assert int(refusal["metadata"]["neededBytes"]) > int(refusal["metadata"]["freeBytes"])
    served = mesh.call("POST", "/serve", json=body)
    assert (served.status_code, reasons(served.json())) == (400, ["DOES_NOT_FIT"])


def test_a_token_of_a_user_may_manage_but_not_administer(mesh: RunningMesh) -> None:
    created = mesh.call("POST", "/users", json={"username": "ada", "password": "correct horse", "role": "ROLE_USER"})
    assert created.status_code == 200, created.text
    login = mesh.http.post(mesh.url("gateway", "/auth/token"), json={"username": "ada", "password": "correct horse"})
    token = login.json()["access_token"]
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert set(claims["scopes"]) == {"infer:*", "manage"}
    headers = {"authorization": f"Bearer {token}"}
    assert mesh.http.get(mesh.url("gateway", "/models"), headers=headers).status_code == 200
    refused = mesh.http.get(mesh.url("gateway", "/users"), headers=headers)
    assert (refused.status_code, reasons(refused.json())) == (403, ["SCOPE_MISSING"])


def test_a_model_in_use_cannot_be_deleted(mesh: RunningMesh) -> None:
    mesh.add_model("held", "held.gguf")
    server = mesh.serve("held")
    refused = mesh.call("DELETE", "/models/held")
    assert (refused.status_code, reasons(refused.json())) == (400, ["MODEL_IN_USE"])
    mesh.call("DELETE", f"/stop/{server['server_uuid']}")
    assert mesh.call("DELETE", "/models/held").status_code == 200
    assert mesh.call("GET", "/models/held").status_code == 404
