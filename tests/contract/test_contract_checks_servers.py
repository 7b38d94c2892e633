"""Check says yes or no with numbers, never starts anything, and records every decision for who asked."""

from __future__ import annotations

import pytest

from llamesh.v1 import contract_pb2, server_pb2
from tests.contract.contract_mesh import MIB, MODEL, contract_mesh, failure  # noqa: F401 - a fixture


async def check(mesh, as_caller, subject="ada", **fields):
    request = contract_pb2.CheckRequest(**{"model_uuid": "smol", **fields})
    return await mesh.contract.Check(request, metadata=as_caller(subject, "manage"))


async def test_a_server_that_fits_is_allowed_with_its_memory_and_typed_parameters(mesh, as_caller) -> None:
    answer = await check(mesh, as_caller, runtime_params="-c 2048 --mlock", replicas=2)
    assert answer.allowed
    assert not answer.refusals
    assert answer.runtime_params == "--ctx-size 2048 --load-mode mlock"
    assert answer.model_name == MODEL.name
    assert answer.parameters.ctx_size == 2048
    assert answer.memory.replicas == 2
    assert answer.memory.weights_bytes == 96 * MIB
    assert answer.memory.kv_cache_bytes == 2048 * 30 * 2 * 3 * 64 * 2
    parts = answer.memory.weights_bytes + answer.memory.kv_cache_bytes + answer.memory.overhead_bytes
    assert answer.memory.total_bytes == 2 * parts
    assert answer.memory.shared_weights_bytes == 0
    assert answer.free_bytes == 8192 * MIB


async def test_without_a_context_four_slots_of_4096_tokens_are_counted(mesh, as_caller) -> None:
    default = await check(mesh, as_caller)
    spelt = await check(mesh, as_caller, runtime_params="--ctx-size 16384")
    assert default.memory == spelt.memory
    unified = await check(mesh, as_caller, runtime_params="--kv-unified")
    assert unified.memory.kv_cache_bytes * 4 == default.memory.kv_cache_bytes


async def test_cache_types_and_the_prompt_cache_change_the_needed_memory(mesh, as_caller) -> None:
    plain = await check(mesh, as_caller, runtime_params="-c 8192")
    small = await check(mesh, as_caller, runtime_params="-c 8192 -ctk q8_0 -ctv q8_0 -fa on")
    assert small.memory.kv_cache_bytes * 32 == plain.memory.kv_cache_bytes * 17
    cached = await check(mesh, as_caller, runtime_params="-c 8192 --cache-ram 100")
    assert cached.memory.total_bytes - plain.memory.total_bytes == 100 * MIB


async def test_every_rule_that_speaks_against_it_is_named_at_once(mesh, as_caller) -> None:
    mesh.controller.nodes[0].free_bytes = 256 * MIB
    answer = await check(mesh, as_caller, replicas=9, namespace="kube-system", runtime_params="-c 1048576")
    assert not answer.allowed
    assert [item.reason for item in answer.refusals] == [
        "TOO_MANY_REPLICAS",
        "NAMESPACE_NOT_ALLOWED",
        "DOES_NOT_FIT",
    ]
    assert answer.free_bytes == 256 * MIB
    assert answer.refusals[2].metadata["neededBytes"] == str(answer.memory.total_bytes)
    assert answer.refusals[2].metadata["freeBytes"] == str(256 * MIB)


async def test_the_proposed_context_is_allowed_when_asked_for(mesh, as_caller) -> None:
    mesh.controller.nodes[0].free_bytes = 768 * MIB
    refused = await check(mesh, as_caller, runtime_params="-c 1000000 -np 2")
    proposed = refused.refusals[0].metadata["fittingCtxSize"]
    assert not refused.allowed
    assert (await check(mesh, as_caller, runtime_params=f"-c {proposed} -np 2")).allowed
    assert not (await check(mesh, as_caller, runtime_params=f"-c {int(proposed) + 256} -np 2")).allowed


async def test_a_changed_server_counts_its_own_memory_as_free(mesh, as_caller) -> None:
    needed = (await check(mesh, as_caller)).memory.total_bytes
    mesh.controller.nodes[0].free_bytes = 0
    mesh.controller.freed_bytes = needed
    assert not (await check(mesh, as_caller)).allowed
    answer = await check(mesh, as_caller, replaces_server_uuid="0f0c6a0e")
    assert answer.allowed
    assert answer.free_bytes == needed
    assert not (await check(mesh, as_caller, replaces_server_uuid="0f0c6a0e", replicas=2)).allowed


async def test_weights_that_are_in_use_already_are_not_counted_again(mesh, as_caller) -> None:
    answer = await check(mesh, as_caller, model_uuid="smol-q8", replicas=3)
    memory = answer.memory
    assert memory.shared_weights_bytes == memory.weights_bytes == 96 * MIB
    own = memory.kv_cache_bytes + memory.overhead_bytes
    assert memory.total_bytes == 96 * MIB + 3 * own
    node = mesh.controller.nodes[0]
    node.free_bytes = 3 * own
    refused = await check(mesh, as_caller, model_uuid="smol-q8", replicas=3)
    assert not refused.allowed
    assert refused.refusals[0].metadata["neededBytes"] == str(memory.total_bytes)
    node.shared_weights.add(model_uuid="another", shared_bytes=96 * MIB)
    assert not (await check(mesh, as_caller, model_uuid="smol-q8", replicas=3)).allowed
    node.shared_weights.add(model_uuid="smol-q8", shared_bytes=96 * MIB)
    assert (await check(mesh, as_caller, model_uuid="smol-q8", replicas=3)).allowed
    refused = await check(mesh, as_caller, model_uuid="smol-q8", replicas=4)
    assert "the weights 96 MiB are in use already" in refused.refusals[0].message
    for mode in ("none", "mlock"):
        copied = await check(mesh, as_caller, model_uuid="smol-q8", replicas=3, runtime_params=f"--load-mode {mode}")
        assert copied.memory.shared_weights_bytes == 0
        assert copied.memory.total_bytes == 3 * (96 * MIB + own)
        assert not copied.allowed


async def test_a_draft_model_counts_with_its_own_cache(mesh, as_caller) -> None:
    alone = await check(mesh, as_caller, runtime_params="-c 8192 -np 2")
    both = await check(mesh, as_caller, runtime_params="-c 8192 -np 2 -md tiny -ctkd q8_0 --spec-draft-n-max 16")
    row = 3 * 64
    assert both.memory.weights_bytes - alone.memory.weights_bytes == 8 * MIB
    assert both.memory.kv_cache_bytes - alone.memory.kv_cache_bytes == 8192 * 2 * (row * 34 // 32 + row * 2)
    assert both.memory.overhead_bytes - alone.memory.overhead_bytes > 2 * 16 * 2 * 4 * 49152
    assert both.parameters.model_draft == "tiny"


async def test_a_draft_model_that_llama_cpp_would_not_use_is_refused(mesh, as_caller) -> None:
    reason, metadata = await failure(check(mesh, as_caller, runtime_params="-md stranger"))
    assert (reason, metadata["parameter"], metadata["value"]) == ("PARAMETER_INVALID", "--model-draft", "stranger")
    assert "32000 tokens and the model one of 49152" in metadata["problem"]
    reason, metadata = await failure(check(mesh, as_caller, runtime_params="-md nobody"))
    assert (reason, metadata["modelUuid"]) == ("MODEL_NOT_FOUND", "nobody")


async def test_linear_scaling_beyond_the_trained_context_is_refused_and_yarn_is_not(mesh, as_caller) -> None:
    reason, metadata = await failure(
        check(mesh, as_caller, runtime_params="--rope-scaling linear --rope-scale 2 -c 16384 -np 1")
    )
    assert (reason, metadata["parameter"]) == ("PARAMETER_INVALID", "--rope-scaling")
    assert "at most the 8192 tokens" in metadata["problem"]
    for allowed in ("yarn --rope-scale 2 -c 16384 -np 1", "linear --rope-scale 2 -c 16384 -np 2"):
        assert (await check(mesh, as_caller, runtime_params=f"--rope-scaling {allowed}")).allowed


async def test_malformed_parameters_are_errors_not_refusals(mesh, as_caller) -> None:
    reason, metadata = await failure(check(mesh, as_caller, runtime_params="--api-key-file /x"))
    assert (reason, metadata["parameter"]) == ("PARAMETER_UNKNOWN", "--api-key-file")
    assert metadata["problem"].startswith("requests are authorised at the front door")
    reason, metadata = await failure(check(mesh, as_caller, runtime_params="--ctx-size 2K"))
    assert (reason, metadata["parameter"], metadata["value"]) == ("PARAMETER_INVALID", "--ctx-size", "2K")
    both = {"runtime_params": "-c 2048", "parameters": server_pb2.RuntimeParameters(ctx_size=2048)}
    assert (await failure(check(mesh, as_caller, **both)))[0] == "INVALID_FIELD"


async def test_typed_parameters_are_held_to_the_same_rules(mesh, as_caller) -> None:
    answer = await check(mesh, as_caller, parameters=server_pb2.RuntimeParameters(ctx_size=2048, jinja=False))
    assert answer.runtime_params == "--ctx-size 2048 --no-jinja"
    typed = server_pb2.RuntimeParameters(batch_size=64, ubatch_size=128)
    reason, metadata = await failure(check(mesh, as_caller, parameters=typed))
    assert (reason, metadata["parameter"]) == ("PARAMETER_INVALID", "--ubatch-size")


async def test_other_members_own_refusals_are_passed_on(mesh, as_caller) -> None:
    assert await failure(check(mesh, as_caller, model_uuid="other")) == ("MODEL_NOT_FOUND", {"modelUuid": "other"})
    assert (await failure(check(mesh, as_caller, replaces_server_uuid="gone")))[0] == "SERVER_NOT_FOUND"


async def test_a_token_that_only_infers_checks_nothing(mesh, as_caller) -> None:
    request = contract_pb2.CheckRequest(model_uuid="smol")
    answer = await failure(mesh.contract.Check(request, metadata=as_caller("ada", "infer:*")))
    assert answer == ("SCOPE_MISSING", {"scope": "manage"})


async def test_decisions_are_recorded_newest_first_and_seen_by_their_caller(mesh, as_caller) -> None:
    allowed = await check(mesh, as_caller)
    refused = await check(mesh, as_caller, replicas=9)
    others = await check(mesh, as_caller, subject="bob")

    async def listed(subject, *scopes, **fields):
        request = contract_pb2.ListDecisionsRequest(**fields)
        return await mesh.contract.ListDecisions(request, metadata=as_caller(subject, *scopes))

    mine = await listed("ada", "manage")
    assert [item.decision_id for item in mine.decisions] == [refused.decision_id, allowed.decision_id]
    assert (await listed("root", "admin")).decisions[0].decision_id == others.decision_id
    assert [item.decision_id for item in (await listed("ada", "manage", refused_only=True)).decisions] == [
        refused.decision_id
    ]
    decision = await mesh.contract.GetDecision(
        contract_pb2.GetDecisionRequest(decision_id=refused.decision_id), metadata=as_caller("ada", "manage")
    )
    assert (decision.subject, decision.action, decision.object, decision.allowed) == ("ada", "check", "smol", False)
    assert decision.refusals == refused.refusals
    assert decision.memory == refused.memory
    request = contract_pb2.GetDecisionRequest(decision_id=refused.decision_id)
    assert (await failure(mesh.contract.GetDecision(request, metadata=as_caller("bob", "manage"))))[0] == (
        "DECISION_NOT_FOUND"
    )


async def test_a_check_before_a_server_is_declared_is_recorded_as_serve(mesh, as_caller) -> None:
    made = [await check(mesh, as_caller, serve=serve) for serve in (False, True)]
    requests = [contract_pb2.GetDecisionRequest(decision_id=each.decision_id) for each in made]
    found = [await mesh.contract.GetDecision(each, metadata=as_caller("ada", "manage")) for each in requests]
    assert [decision.action for decision in found] == ["check", "serve"]


async def test_decisions_are_walked_page_by_page(mesh, as_caller) -> None:
    made = [(await check(mesh, as_caller)).decision_id for _ in range(5)]
    seen, token = [], ""
    while True:
        request = contract_pb2.ListDecisionsRequest(page_size=2, page_token=token)
        page = await mesh.contract.ListDecisions(request, metadata=as_caller("ada", "manage"))
        seen += [item.decision_id for item in page.decisions]
        token = page.next_page_token
        if not token:
            break
    assert seen == made[::-1]
    foreign = contract_pb2.ListDecisionsRequest(page_token="bm90IG91cnM")
    reason, _ = await failure(mesh.contract.ListDecisions(foreign, metadata=as_caller("ada", "manage")))
    assert reason == "INVALID_PAGE_TOKEN"


async def test_the_policy_is_readable(mesh, as_caller) -> None:
    policy = await mesh.contract.GetPolicy(contract_pb2.GetPolicyRequest(), metadata=as_caller("ada", "manage"))
    assert (policy.max_replicas, list(policy.allowed_namespaces), policy.anonymous_inference) == (
        5,
        ["default", "inference"],
        True,
    )


async def test_a_projector_counts_unless_the_server_leaves_it_out(mesh, as_caller) -> None:
    blind = await check(mesh, as_caller, model_uuid="seeing", runtime_params="--no-mmproj")
    for given in ("", "--mmproj-auto"):
        seeing = await check(mesh, as_caller, model_uuid="seeing", runtime_params=given)
        assert seeing.memory.overhead_bytes - blind.memory.overhead_bytes == 2 * 8 * MIB


async def test_a_projector_that_the_model_lacks_is_refused(mesh, as_caller) -> None:
    reason, metadata = await failure(check(mesh, as_caller, runtime_params="--mmproj-auto"))
    assert (reason, metadata["parameter"]) == ("PARAMETER_INVALID", "--mmproj-auto")
    assert "the model has no projector: fetch it again with one" in metadata["problem"]


async def test_the_adapters_that_a_server_uses_count(mesh, as_caller) -> None:
    without = await check(mesh, as_caller, model_uuid="seeing")
    styled = await check(mesh, as_caller, model_uuid="seeing", runtime_params="--lora style:0.5")
    assert styled.memory.overhead_bytes - without.memory.overhead_bytes == 3 * MIB
    assert styled.parameters.lora == "style:0.5"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("law", "the model has no adapter law (it has style): fetch it again with one"),
        ("style,style:2", "names the adapter style twice"),
        ("style:x", ""),
        ("/tmp/adapter.gguf", ""),
        (",".join(f"a{number}" for number in range(9)), ""),
    ],
)
async def test_adapters_that_cannot_be_used_are_refused(mesh, as_caller, given: str, problem: str) -> None:
    reason, metadata = await failure(check(mesh, as_caller, model_uuid="seeing", runtime_params=f"--lora {given}"))
    assert (reason, metadata["parameter"]) == ("PARAMETER_INVALID", "--lora")
    assert problem in metadata["problem"]


async def test_a_placement_is_refused_where_engines_are_processes(mesh, as_caller) -> None:
    answer = await check(mesh, as_caller, placement=server_pb2.Placement(image="engine:1"))
    (refusal,) = answer.refusals
    assert (refusal.reason, dict(refusal.metadata)) == ("PLACEMENT_NEEDS_KUBERNETES", {"field": "placement"})
    assert "Leave out placement" in refusal.remedy
    assert (await check(mesh, as_caller, placement=server_pb2.Placement())).allowed
    policy = await mesh.contract.GetPolicy(contract_pb2.GetPolicyRequest(), metadata=as_caller("ada", "manage"))
    assert not policy.HasField("placement")
