"""envoy/lua/token_scopes.lua in route.lua: a token that lacks a model is refused with the reason, and with the models that it grants."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_route_filter_chooses_cluster_and_refuses import UUID, run

CONTRACT = "ctr_8c1d"
SETTINGS = {"kind": "inference"}


def refusal(scopes: list[str], path: str = "/v1/completions", **claims: Any) -> tuple[str | None, str]:
    outcome = run(path=path, claims={"sub": "ada", "scopes": scopes} | claims, settings=SETTINGS)
    assert outcome.status == 403
    return outcome.code, outcome.answer["error"]["message"]


def test_a_login_under_a_contract_is_told_that_the_contract_does_not_grant_the_model() -> None:
    code, message = refusal(["manage", "infer:phi", "infer:qwen"], contract=CONTRACT, jti="4f0c")
    assert code == "model_not_in_contract"
    assert message == (
        "The contract ctr_8c1d does not grant smol; this login may use phi, qwen. If the contract was changed since, log in again."
    )


@pytest.mark.parametrize("claims", [{}, {"contract": ""}, {"contract": CONTRACT, "jti": "key_1"}])
def test_a_key_or_a_token_without_a_contract_lacks_a_scope(claims: dict[str, str]) -> None:
    code, message = refusal(["infer:phi"], **claims)
    assert code == "scope_missing"
    assert message == "The token lacks the scope infer:smol; it may use phi."


@pytest.mark.parametrize(("scopes", "granted"), [(["manage"], "no model"), ([], "no model")])
def test_a_token_for_no_model_says_so(scopes: list[str], granted: str) -> None:
    assert granted in refusal(scopes)[1]
    assert granted in refusal(scopes, path=f"/{UUID}/v1/completions", contract=CONTRACT, jti="4f0c")[1]


def test_the_named_scopes_are_bounded_and_escaped() -> None:
    many = [f"infer:model{number}" for number in range(11)]
    assert refusal(many)[1].endswith(
        "it may use model0, model1, model2, model3, model4, model5, model6, model7 and 3 more."
    )
    hostile = refusal(['infer:a"b\n' + "x" * 5000])[1]
    assert hostile.startswith("The token lacks the scope infer:smol; it may use a?b?x")
    assert len(hostile) < 300


def test_a_list_of_a_servers_models_is_refused_with_the_same_words() -> None:
    claims = {"scopes": ["infer:phi"], "contract": CONTRACT, "jti": "4f0c"}
    outcome = run(b"", settings={"kind": "models"}, path=f"/{UUID}/v1/models", content_type=None, claims=claims)
    assert (outcome.status, outcome.code) == (403, "model_not_in_contract")
    assert f"does not grant {UUID}" in outcome.answer["error"]["message"]
