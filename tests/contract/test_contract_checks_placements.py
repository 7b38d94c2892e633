"""A placement is judged by the settings of a mesh on Kubernetes, before a server is declared and after an object was applied alike."""

from __future__ import annotations

import pytest

from llamesh.kit.config import Settings
from llamesh.v1 import contract_pb2
from llamesh.v1.server_pb2 import Gpus, Placement, Toleration
from tests.contract.contract_mesh import contract_mesh, failure  # noqa: F401 - a fixture


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"runtime": "kubernetes", "engine_images": ("cuda:*",)})


async def test_rest_and_objects_are_refused_with_the_same_reason(mesh, as_caller) -> None:
    request = contract_pb2.CheckRequest(
        model_uuid="smol", placement=Placement(image="evil:1", tolerations=[Toleration(key="dedicated")])
    )
    asked = await mesh.contract.Check(request, metadata=as_caller("ada", "manage"))
    declared = await mesh.contract.CheckDeclaredServer(
        contract_pb2.CheckDeclaredServerRequest(check=request, subject="kubernetes:default/chat")
    )
    assert not asked.allowed
    assert list(asked.refusals) == list(declared.refusals)
    assert [(each.reason, each.metadata["field"], each.metadata["value"]) for each in asked.refusals] == [
        ("PLACEMENT_NOT_ALLOWED", "placement.tolerations", "dedicated"),
        ("PLACEMENT_NOT_ALLOWED", "placement.image", "evil:1"),
    ]
    assert asked.refusals[1].metadata["allowed"] == "inference-engine:latest,cuda:*"


async def test_what_the_settings_allow_is_allowed(mesh, as_caller) -> None:
    placement = Placement(image="cuda:12", gpus=Gpus(count=1), node_selector={"kubernetes.io/arch": "amd64"})
    request = contract_pb2.CheckRequest(model_uuid="smol", placement=placement)
    assert (await mesh.contract.Check(request, metadata=as_caller("ada", "manage"))).allowed


async def test_a_malformed_placement_is_an_error_that_names_the_field(mesh, as_caller) -> None:
    request = contract_pb2.CheckRequest(model_uuid="smol", placement=Placement(node_selector={"a b": "c"}))
    reason, metadata = await failure(mesh.contract.Check(request, metadata=as_caller("ada", "manage")))
    assert (reason, metadata["fields"]) == ("INVALID_FIELD", "placement.node_selector[a b]")


async def test_the_policy_says_what_placements_may_name(mesh, as_caller) -> None:
    policy = await mesh.contract.GetPolicy(contract_pb2.GetPolicyRequest(), metadata=as_caller("ada", "manage"))
    assert list(policy.placement.engine_images) == ["inference-engine:latest", "cuda:*"]
    assert list(policy.placement.gpu_resources) == ["nvidia.com/gpu", "amd.com/gpu"]
    assert list(policy.placement.priority_classes) == []
    assert "llamesh.dev/*" in policy.placement.node_labels
