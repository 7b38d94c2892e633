"""A ModelServe object becomes engines that answer, however it was declared. Against a stand-in of the cluster."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import grpc
import pytest

from controller.kubernetes import acceptance
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1 import server_pb2
from llamesh.v1.contract_pb2 import Refusal
from llamesh.v1.server_pb2 import ServerChanges, ServerSpec
from tests.contract.fake_runtime import refused
from tests.contract.kubernetes.world import SERVERS, FakeContract, InCluster, outage, quiet
from tests.contract.patience import until


async def test_an_applied_object_becomes_engines_that_answer(world: InCluster) -> None:
    world.apply(modelName="smol", parameters={"ctxSize": 2048, "cacheTypeK": "q8_0"}, idleSleep="10m")
    await until(lambda: world.deployment())
    deployment = world.deployment()
    assert deployment is not None
    assert deployment["metadata"]["ownerReferences"][0]["uid"] == world.object()["metadata"]["uid"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    documents = deployment["spec"]["template"]["metadata"]["annotations"]
    (fetched,) = json.loads(documents["llamesh.dev/objects"])
    assert fetched == {"key": f"models/{'0' * 64}-1.gguf", "size_bytes": 5, "path": "/models/m1/model.gguf"}
    assert json.loads(documents["llamesh.dev/engine"])["model"] == fetched["path"]
    assert "envFrom" in pod["initContainers"][0]
    assert "envFrom" not in pod["containers"][0]
    assert pod["containers"][0]["resources"]["requests"]["memory"] == str(128 << 20)
    assert not world.endpoints()
    world.cluster.settle()
    assert world.condition("Ready").get("status") != "True"
    world.answers("10.0.0.7")
    await until(lambda: world.condition("Ready").get("status") == "True")
    assert world.endpoints() == ("10.0.0.7:8080",)
    (only,) = world.pods()
    assert {"type": "llamesh.dev/routed", "status": "True", "reason": "Acknowledged"} in only["status"]["conditions"]
    status = world.object()["status"]
    assert (status["state"], status["replicas"], status["readyReplicas"]) == ("READY", 1, 1)
    assert status["observedGeneration"] == 1
    assert status["endpoint"].endswith(f"/{world.object()['metadata']['uid']}/v1")
    assert status["engineMemoryBytes"] == 128 << 20
    for kind in ("Accepted", "ModelReady", "Available"):
        assert world.condition(kind)["status"] == "True", kind


async def test_a_call_and_an_object_declare_the_same(world: InCluster) -> None:
    spec = ServerSpec(model_uuid="m1", model_name="smol", replicas=2)
    request = pb.DeclareServerRequest(spec=spec, owner="ada", owner_uid="u1", request_id="once", request_digest="d1")
    first = await world.stub.DeclareServer(request)
    again = await world.stub.DeclareServer(request)
    assert first.server_uuid == again.server_uuid
    (item,) = world.cluster.of("modelserves")
    assert item["metadata"]["uid"] == first.server_uuid
    assert item["spec"] == {"modelUuid": "m1", "modelName": "smol", "replicas": 2}
    assert item["metadata"]["annotations"]["llamesh.dev/owner"] == "ada"
    request.request_digest = "d2"
    await refused(world.stub.DeclareServer(request), "REQUEST_ID_REUSED")
    found = await world.stub.FindRequestedServer(
        pb.FindRequestedServerRequest(owner="ada", owner_uid="u1", request_id="once", request_digest="d1")
    )
    assert found.server_uuid == first.server_uuid
    await world.ready(item["metadata"]["name"], pods=2)
    listed = await world.stub.ListDeclaredServers(pb.ListDeclaredServersRequest())
    assert [(each.state, each.ready_replicas) for each in listed.servers] == [(server_pb2.SERVER_STATE_READY, 2)]


async def test_a_refused_spec_says_why_and_is_asked_again(
    world: InCluster, contract: FakeContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "FIRST_PAUSE", 0.05)
    contract.refusal = Refusal(reason="DOES_NOT_FIT", message="needs 11.2 GiB, 8 GiB are free")
    world.apply()
    await until(lambda: world.condition("Accepted").get("status") == "False")
    accepted = world.condition("Accepted")
    assert (accepted["reason"], accepted["message"]) == ("DoesNotFit", "needs 11.2 GiB, 8 GiB are free")
    await until(lambda: world.condition("Ready").get("reason") == "DoesNotFit")
    assert world.deployment() is None
    assert contract.asked[0].subject == "kubernetes:default/chat"
    contract.refusal = None
    await world.ready()
    assert world.condition("Accepted")["status"] == "True"


async def test_a_refused_change_leaves_what_runs(world: InCluster, contract: FakeContract) -> None:
    world.apply()
    await world.ready()
    before = world.deployment()
    contract.refusal = Refusal(reason="TOO_MANY_REPLICAS", message="at most 5")
    world.apply(replicas=9)
    await until(lambda: world.condition("Accepted").get("status") == "False")
    assert world.condition("Accepted")["observedGeneration"] == 2
    assert world.deployment() == before
    assert world.endpoints()


async def test_an_outage_of_the_contract_service_is_waited_for(world: InCluster, contract: FakeContract) -> None:
    contract.error = outage()
    world.apply()
    await until(lambda: len(contract.asked) > 1)
    assert world.deployment() is None
    contract.error = None
    await world.ready()


async def test_an_old_pod_stays_until_its_successor_gets_requests(world: InCluster) -> None:
    world.apply()
    await world.ready()
    (old,) = [pod["metadata"]["name"] for pod in world.pods()]
    before = world.deployment()
    world.apply(parameters={"ctxSize": 4096})
    await until(lambda: world.deployment() != before)
    world.cluster.settle()
    assert len(world.pods()) == 2
    assert world.endpoints() == ("10.0.0.1:8080",)
    world.answers("10.0.0.2")
    await until(lambda: len(world.endpoints()) == 2)
    await until(lambda: all("llamesh.dev/routed" in str(pod["status"]) for pod in world.pods()))
    world.cluster.settle()
    await until(lambda: world.endpoints() == ("10.0.0.2:8080",))
    # While the old pod finishes its requests, the new one is what the server has.
    assert old in {pod["metadata"]["name"] for pod in world.pods()}
    await until(lambda: world.object()["status"]["state"] == "READY")
    assert world.condition("Available")["status"] == world.condition("Ready")["status"] == "True"
    world.cluster.settle()
    assert old not in {pod["metadata"]["name"] for pod in world.pods()}


async def test_replicas_follow_the_object_and_nobody_else(world: InCluster) -> None:
    world.apply()
    await world.ready()
    world.apply(replicas=3)
    await until(lambda: world.deployment()["spec"]["replicas"] == 3)
    path = next(path for path in world.cluster.objects if "/deployments/" in path)
    foreign = {**world.cluster.objects[path], "spec": {**world.cluster.objects[path]["spec"], "replicas": 7}}
    world.cluster.put(path, foreign)
    await until(lambda: world.deployment()["spec"]["replicas"] == 3)


async def test_a_server_sleeps_wakes_and_is_removed(world: InCluster) -> None:
    world.apply()
    await world.ready()
    uid = world.object()["metadata"]["uid"]
    await world.stub.SleepDeclaredServer(pb.SleepDeclaredServerRequest(server_uuid=uid))
    await until(lambda: world.deployment()["spec"]["replicas"] == 0)
    assert world.object()["metadata"]["annotations"]["llamesh.dev/run-state"] == "asked"
    assert world.object()["metadata"]["generation"] == 1
    world.cluster.settle()
    await until(lambda: world.condition("Ready").get("reason") == "Asleep")
    await world.stub.WakeDeclaredServer(pb.WakeDeclaredServerRequest(server_uuid=uid))
    await world.ready()
    assert "llamesh.dev/run-state" not in world.object()["metadata"]["annotations"]
    removal = world.stub.RemoveServer(pb.RemoveServerRequest(server_uuid=uid))
    await until(lambda: world.object()["metadata"].get("deletionTimestamp"))
    await until(lambda: world.condition("Ready").get("reason") == "Stopping")
    # The cluster removes what the object owns, then the object.
    world.cluster.remove(f"{SERVERS}/chat")
    assert (await removal).state == server_pb2.SERVER_STATE_STOPPED
    await until(lambda: not world.envoy.intent._servers)


async def test_a_change_for_a_caller_keeps_what_others_changed(world: InCluster) -> None:
    world.apply(parameters={"ctxSize": 2048, "parallel": 2})
    await world.ready()
    uid = world.object()["metadata"]["uid"]
    changes = ServerChanges(replicas=2, parameters={"ctx_size": 4096})
    changed = await world.stub.UpdateDeclaredServer(
        pb.UpdateDeclaredServerRequest(server_uuid=uid, changes=changes, etag="1")
    )
    assert changed.generation == 2
    assert world.object()["spec"] == {"modelUuid": "m1", "replicas": 2, "parameters": {"ctxSize": 4096}}
    with pytest.raises(grpc.aio.AioRpcError):
        await world.stub.UpdateDeclaredServer(
            pb.UpdateDeclaredServerRequest(server_uuid=uid, changes=changes, etag="1")
        )


async def test_engines_stay_reachable_while_the_cluster_does_not_answer(world: InCluster) -> None:
    world.apply()
    await world.ready()
    world.cluster.fault = (503, "etcd is away")
    world.cluster.cut_watches()
    uid = world.object()["metadata"]["uid"]
    server = await world.stub.GetDeclaredServer(pb.GetDeclaredServerRequest(server_uuid=uid))
    assert server.state == server_pb2.SERVER_STATE_READY
    await refused(world.stub.DeclareServer(declare("other")), "COMPONENT_UNAVAILABLE")
    assert world.endpoints()
    world.cluster.fault = None
    world.apply("second")
    await until(lambda: len(world.cluster.of("deployments")) == 2)


def declare(name: str) -> Any:
    return pb.DeclareServerRequest(spec=ServerSpec(model_uuid="m1", model_name=name), owner="ada")


async def test_a_pod_whose_model_is_fetched_and_that_starts_has_no_problem(world: InCluster) -> None:
    world.apply()
    await until(lambda: world.deployment())
    world.cluster.settle()
    (pod,) = world.pods()
    done = {"name": "fetch", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    starting = {"name": "engine", "state": {"running": {}}}
    path = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}"
    status = {"phase": "Running", "initContainerStatuses": [done], "containerStatuses": [starting]}
    world.cluster.put(path, {**pod, "status": status})
    await until(lambda: "replicaStatuses" in world.object().get("status", {}))
    assert world.object()["status"]["state"] == "STARTING"
    world.answers()
    await until(lambda: world.condition("Ready").get("reason") == "Starting")


WAITING = {"name": "engine", "restartCount": 3}


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/1 nodes: Insufficient memory",
                    }
                ]
            },
            "Unschedulable",
            "no node takes it: 0/1 nodes: Insufficient memory",
        ),
        (
            {
                "containerStatuses": [
                    {**WAITING, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
                ]
            },
            "ImagePullBackOff",
            "the image of the engine cannot be pulled: not found",
        ),
        (
            {
                "containerStatuses": [
                    {
                        **WAITING,
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                    }
                ]
            },
            "OutOfMemory",
            "took more memory than its limit",
        ),
        (
            {
                "containerStatuses": [
                    {
                        **WAITING,
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {
                            "terminated": {"exitCode": 65, "message": "x\nengine: the model is damaged (BAD_MODEL)\n"}
                        },
                    }
                ]
            },
            "EngineExited",
            "the model is damaged",
        ),
    ],
)
async def test_the_failure_of_a_pod_is_said_in_words(
    world: InCluster, status: dict[str, Any], reason: str, words: str
) -> None:
    world.apply()
    await until(lambda: world.deployment())
    world.cluster.settle()
    (pod,) = world.pods()
    path = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}"
    world.cluster.put(path, {**pod, "status": {"phase": "Pending", **status}})
    await until(lambda: world.condition("Ready").get("reason") == reason)
    assert words in world.condition("Ready")["message"]
    assert world.object()["status"]["state"] == "FAILING"


async def test_a_pod_that_was_evicted_is_replaced_and_then_nothing_is_written(world: InCluster) -> None:
    world.apply()
    await world.ready()
    (old,) = world.pods()
    path = f"/api/v1/namespaces/default/pods/{old['metadata']['name']}"
    world.cluster.put(path, {**old, "status": {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}})
    await until(lambda: not world.endpoints())
    world.cluster.settle()
    world.answers("10.0.0.2")
    await until(lambda: world.endpoints() == ("10.0.0.2:8080",))
    await until(lambda: world.object()["status"]["state"] == "READY")
    await quiet(world.cluster)


async def test_a_pod_of_another_namespace_or_maker_is_no_engine(world: InCluster) -> None:
    world.apply()
    await world.ready()
    (own,) = world.pods()
    strangers = {
        "other": {"labels": own["metadata"]["labels"], "ownerReferences": own["metadata"]["ownerReferences"]},
        "default": {"labels": own["metadata"]["labels"]},
    }
    for namespace, metadata in strangers.items():
        path = f"/api/v1/namespaces/{namespace}/pods/stranger"
        world.cluster.put(path, {"metadata": metadata, "status": own["status"] | {"podIP": "10.6.6.6"}})
    world.apply(replicas=2)
    await until(lambda: world.deployment()["spec"]["replicas"] == 2)
    world.cluster.settle()
    world.answers("10.0.0.2")
    await until(lambda: set(world.endpoints()) == {"10.0.0.1:8080", "10.0.0.2:8080"})


async def test_names_with_dots_become_names_of_deployments(world: InCluster) -> None:
    world.apply("7b.qwen2.5")
    await until(lambda: world.deployment())
    assert re.fullmatch(r"ms-7b-qwen2-5-[0-9a-f]{8}", world.deployment()["metadata"]["name"])


async def test_what_the_cluster_refuses_is_said_and_tried_again(
    world: InCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.kubernetes.workload_writer.RETRY_SECONDS", 0.05)
    world.cluster.refused["/deployments/"] = 403
    world.apply()
    world.apply("second")
    for name in ("chat", "second"):
        await until(lambda name=name: world.condition("Ready", name).get("reason") == "RefusedByCluster")
    world.cluster.refused.clear()
    await until(lambda: len(world.cluster.of("deployments")) == 2)


async def test_a_status_that_cannot_be_written_stops_no_other(world: InCluster) -> None:
    world.cluster.refused["/modelserves/first/status"] = 422
    world.apply("first")
    world.apply("second")
    await until(lambda: world.condition("Accepted", "second").get("status") == "True")
    await until(lambda: world.object("second")["status"].get("state"))


async def test_a_deployment_that_somebody_changes_is_set_right(world: InCluster) -> None:
    world.apply()
    await world.ready()
    path = next(path for path in world.cluster.objects if "/deployments/" in path)
    right = copy.deepcopy(world.cluster.objects[path])
    wrong = copy.deepcopy(right)
    wrong["spec"]["template"]["spec"]["containers"][0]["image"] = "another:latest"
    world.cluster.put(path, wrong)
    await until(lambda: world.deployment()["spec"] == right["spec"])


async def test_events_do_not_ask_again_about_a_refusal(world: InCluster, contract: FakeContract) -> None:
    contract.refusal = Refusal(reason="DOES_NOT_FIT", message="no")
    world.apply()
    await until(lambda: world.condition("Accepted").get("status") == "False")
    for number in range(20):
        item = copy.deepcopy(world.object())
        item["metadata"]["annotations"] = {"x": str(number)}
        world.cluster.put(f"{SERVERS}/chat", item)
    await quiet(world.cluster)
    assert len(contract.asked) == 1


async def test_an_outage_of_the_catalogue_changes_nothing(world: InCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    world.apply()
    await world.ready()
    models = world.place.runtime._models

    async def away(_: str) -> Any:
        raise outage()

    monkeypatch.setattr(models, "_located", away)
    models.ask_again("m1")
    await until(lambda: not models._asking)
    world.apply(replicas=2)
    await until(lambda: world.deployment()["spec"]["replicas"] == 2)
