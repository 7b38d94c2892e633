"""What a token carries: never more than the role, the contract and the maker have."""

from __future__ import annotations

import pytest

from llamesh.kit.errors import MeshError, name_of
from llamesh.v1.gateway_pb2 import Role
from services.contract.grants import Terms, inference_scopes, key_scopes, role_scopes

NONE = Terms()
TWO_MODELS = Terms("ctr_1", ("a", "b"), 2)


@pytest.mark.parametrize(
    ("role", "terms", "scopes"),
    [
        (Role.ROLE_INFERENCE, NONE, ["infer:*"]),
        (Role.ROLE_USER, NONE, ["infer:*", "manage"]),
        (Role.ROLE_ADMIN, NONE, ["infer:*", "manage", "metrics", "admin"]),
        (Role.ROLE_INFERENCE, TWO_MODELS, ["infer:a", "infer:b"]),
        (Role.ROLE_ADMIN, TWO_MODELS, ["infer:a", "infer:b", "manage", "metrics", "admin"]),
    ],
)
def test_a_role_grants_its_scopes_and_a_contract_narrows_inference(
    role: Role.ValueType, terms: Terms, scopes: list[str]
) -> None:
    assert role_scopes(role, terms) == scopes


@pytest.mark.parametrize(
    ("held", "contracts", "left"),
    [
        ({"infer:*", "manage"}, [NONE], ["infer:*"]),
        ({"infer:*"}, [TWO_MODELS], ["infer:a", "infer:b"]),
        ({"infer:b", "infer:c"}, [TWO_MODELS, NONE], ["infer:b"]),
        ({"infer:*"}, [TWO_MODELS, Terms("c", ("b", "c"))], ["infer:b"]),
        ({"infer:*"}, [TWO_MODELS, None], []),
        ({"manage"}, [TWO_MODELS], []),
    ],
)
def test_all_contracts_of_a_token_bound_its_scopes(
    held: set[str], contracts: list[Terms | None], left: list[str]
) -> None:
    assert inference_scopes(held, contracts) == left


def test_admission_is_asked_only_if_the_contract_has_a_limit() -> None:
    assert (NONE.limited, TWO_MODELS.limited, Terms("c", ("*",), 0).limited) == (False, True, False)
    assert (Terms("c", ("a",), 0).limited, Terms("c", ("*",), 1).limited) == (True, True)


@pytest.mark.parametrize(
    ("requested", "held", "terms", "scopes"),
    [
        ([], {"infer:*", "manage"}, NONE, ["infer:*"]),
        ([], {"admin"}, NONE, ["infer:*"]),
        ([], {"infer:b", "infer:a", "manage"}, NONE, ["infer:a", "infer:b"]),
        ([], {"infer:a", "infer:c"}, TWO_MODELS, ["infer:a"]),
        ([], {"admin"}, TWO_MODELS, ["infer:a", "infer:b"]),
        (["infer:*"], {"infer:*"}, TWO_MODELS, ["infer:a", "infer:b"]),
        (["infer:a", "infer:*"], {"infer:*"}, TWO_MODELS, ["infer:a", "infer:b"]),
        (["infer:a"], {"infer:*", "manage"}, NONE, ["infer:a"]),
        (["infer:a"], {"infer:*", "manage"}, TWO_MODELS, ["infer:a"]),
        (["manage"], {"infer:*", "manage"}, TWO_MODELS, ["manage"]),
        (["manage", "infer:x"], {"admin"}, NONE, ["manage", "infer:x"]),
    ],
)
def test_a_key_has_only_scopes_that_its_owner_and_its_contract_allow(
    requested: list[str], held: set[str], terms: Terms, scopes: list[str]
) -> None:
    assert key_scopes(requested, held, terms) == scopes


@pytest.mark.parametrize(
    ("requested", "held", "terms", "missing"),
    [
        (["manage"], {"infer:*"}, NONE, "manage"),
        (["admin"], {"infer:*", "manage"}, NONE, "admin"),
        (["infer:*"], {"infer:a", "manage"}, NONE, "infer:*"),
        (["infer:b"], {"infer:a", "manage"}, NONE, "infer:b"),
        (["infer:a", "infer:c"], {"infer:*"}, TWO_MODELS, "infer:c"),
        (["infer:c"], {"admin"}, TWO_MODELS, "infer:c"),
        ([], {"manage"}, NONE, "infer:*"),
        ([], {"infer:c", "manage"}, TWO_MODELS, "infer:*"),
    ],
)
def test_a_key_that_would_carry_more_is_refused_naming_the_scope(
    requested: list[str], held: set[str], terms: Terms, missing: str
) -> None:
    with pytest.raises(MeshError) as caught:
        key_scopes(requested, held, terms)
    assert name_of(caught.value.reason) == "SCOPE_MISSING"
    assert caught.value.metadata == {"scope": missing}
