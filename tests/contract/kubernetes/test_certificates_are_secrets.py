"""The certificates of members are Secrets that one run makes, and later ones renew. Against a stand-in of the cluster."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from controller.kubernetes.certificate_run import Wanted
from controller.kubernetes.certificate_secrets import LABELS, secret_of
from llamesh.kit.kubernetes_api import KubernetesApi
from llamesh.member_authority import AUTHORITY, AUTHORITY_LIFE
from llamesh.member_certificates import KEY
from llamesh.names import QUANT
from tests.contract.kubernetes.issuing import (
    DUE,
    HOUR,
    NOW,
    PLACE,
    ROTATION,
    RUNNING,
    WANTED,
    Disturbed,
    Killed,
    authorities,
    check_whole,
    content,
    kill,
    lose_the_answer,
    mounted,
    run,
    signed_by,
    writes,
)
from tests.kubernetes_cluster import StandIn


async def test_the_first_run_makes_all_and_the_second_changes_nothing(
    cluster: StandIn, api: KubernetesApi, tmp_path: Path
) -> None:
    await run(api)
    check_whole(cluster, tmp_path, NOW)
    made = {item["metadata"]["name"]: item for item in cluster.of("secrets")}
    assert list(made) == ["llamesh-authority", *(f"llamesh-{member}-tls" for member in RUNNING)], "the authority first"
    for name, item in made.items():
        assert item["type"] == ("Opaque" if name == "llamesh-authority" else "kubernetes.io/tls")
        assert item["metadata"]["labels"] == LABELS
        assert "ownerReferences" not in item["metadata"]
    key = content(cluster, AUTHORITY)[KEY]
    assert not [member for member in RUNNING if key in content(cluster, member).values()]
    before, done = copy.deepcopy(cluster.objects), len(writes(cluster))
    await run(api, now=NOW + 15 * HOUR)
    assert cluster.objects == before
    assert len(writes(cluster)) == done


async def test_what_is_due_or_has_expired_is_renewed(cluster: StandIn, api: KubernetesApi, tmp_path: Path) -> None:
    await run(api, Wanted((*RUNNING, QUANT), "mesh.test", 12 * HOUR))
    (authority,) = authorities(cluster)
    # The life of the one before, unless that has expired.
    for now, life in ((NOW + 9 * HOUR, 12 * HOUR), (NOW + 30 * 24 * HOUR, 24 * HOUR)):
        await run(api, Wanted((*RUNNING, QUANT), "mesh.test"), now)
        assert mounted(cluster, QUANT, tmp_path, now).ends == now + life
        check_whole(cluster, tmp_path, now)
    assert authorities(cluster) == [authority]


async def test_another_trust_domain_gets_other_certificates(
    cluster: StandIn, api: KubernetesApi, tmp_path: Path
) -> None:
    await run(api, Wanted(RUNNING, "another.test"))
    await run(api)
    check_whole(cluster, tmp_path, NOW)


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "by its age"])
async def test_a_new_authority_is_trusted_in_one_run_and_signs_in_the_next(
    cluster: StandIn, api: KubernetesApi, tmp_path: Path, asked: bool
) -> None:
    began = NOW if asked else NOW + AUTHORITY_LIFE * 0.7
    await run(api)
    (old,) = authorities(cluster)
    await run(api, ROTATION if asked else WANTED, began)
    new, kept = authorities(cluster)
    assert kept == old
    check_whole(cluster, tmp_path, began)
    assert all(signed_by(cluster, member, old) for member in RUNNING)
    await run(api, ROTATION, began + timedelta(minutes=5))
    assert authorities(cluster) == [new, old], "the last one does not sign yet"
    await run(api, WANTED, began + 17 * HOUR)
    check_whole(cluster, tmp_path, began + 17 * HOUR)
    assert all(signed_by(cluster, member, new) for member in RUNNING)


@pytest.mark.parametrize("wanted", [WANTED, ROTATION], ids=["first run", "rotation"])
async def test_two_runs_at_once_make_one_authority(
    cluster: StandIn, api: KubernetesApi, disturbed: Callable[..., Disturbed], tmp_path: Path, wanted: Wanted
) -> None:
    rotates = wanted is ROTATION
    if rotates:
        await run(api)
    meeting = asyncio.Barrier(2)

    async def meet() -> None:
        await meeting.wait()

    # Each has read everything before the other writes.
    await asyncio.gather(*(run(disturbed("WRITE", 1, meet), wanted) for _ in range(2)))
    assert len(authorities(cluster)) == 1 + rotates
    check_whole(cluster, tmp_path, NOW)
    done = len(writes(cluster))
    await run(api)
    assert len(writes(cluster)) == done


@pytest.mark.parametrize("method", ["GET", "WRITE"])
async def test_a_run_never_takes_a_member_back_to_an_earlier_authority(
    cluster: StandIn, api: KubernetesApi, disturbed: Callable[..., Disturbed], tmp_path: Path, method: str
) -> None:
    async def rival() -> None:
        await run(api, ROTATION, DUE)

    for at in range(1, 2 + len(RUNNING) - (method != "GET")):
        cluster.objects.clear()
        await run(api)
        await run(disturbed(method, at, rival), WANTED, DUE)
        assert len(authorities(cluster)) == 2, "the rival has run"
        check_whole(cluster, tmp_path, DUE)


@pytest.mark.parametrize("after", [False, True], ids=["before a write", "after a write"])
async def test_the_run_after_a_kill_mends_what_was_left(
    cluster: StandIn, api: KubernetesApi, disturbed: Callable[..., Disturbed], tmp_path: Path, after: bool
) -> None:
    for at in range(1, 2 + len(RUNNING)):
        cluster.objects.clear()
        with pytest.raises(Killed):
            await run(disturbed("WRITE", at, kill, after=after))
        left = {item["metadata"]["name"]: item["data"] for item in cluster.of("secrets")}
        assert len(left) == at - 1 + after
        await run(api)
        check_whole(cluster, tmp_path, NOW)
        now = {item["metadata"]["name"]: item["data"] for item in cluster.of("secrets")}
        assert left.items() <= now.items(), "what was there is kept"
        with pytest.raises(Killed):
            await run(disturbed("WRITE", at, kill, after=after), ROTATION, DUE)
        await run(api, WANTED, DUE)
        check_whole(cluster, tmp_path, DUE)


async def test_a_new_authority_does_not_sign_before_all_members_trust_it(
    cluster: StandIn, api: KubernetesApi, disturbed: Callable[..., Disturbed], tmp_path: Path
) -> None:
    await run(api)
    (old,) = authorities(cluster)
    with pytest.raises(Killed):
        await run(disturbed("WRITE", 2, kill), ROTATION)
    (new, _) = authorities(cluster)
    await run(api, WANTED, NOW + HOUR)
    check_whole(cluster, tmp_path, NOW + HOUR)
    assert all(signed_by(cluster, member, old) for member in RUNNING), (
        "it would be refused by those that have not read theirs"
    )
    await run(api, WANTED, NOW + 20 * HOUR)
    check_whole(cluster, tmp_path, NOW + 20 * HOUR)
    assert all(signed_by(cluster, member, new) for member in RUNNING)


async def test_an_answer_that_is_lost_is_no_second_authority(
    cluster: StandIn, disturbed: Callable[..., Disturbed], tmp_path: Path
) -> None:
    for at in range(1, 2 + len(RUNNING)):
        cluster.objects.clear()
        await run(disturbed("WRITE", at, lose_the_answer, after=True))
        assert len(authorities(cluster)) == 1
        check_whole(cluster, tmp_path, NOW)


async def test_a_secret_that_is_removed_during_a_run_is_made_again(
    cluster: StandIn, api: KubernetesApi, disturbed: Callable[..., Disturbed], tmp_path: Path
) -> None:
    async def remove() -> None:
        cluster.remove(f"{PLACE}/{secret_of(RUNNING[-1])}")

    await run(api)
    await run(disturbed("WRITE", 1, remove), WANTED, DUE)
    check_whole(cluster, tmp_path, DUE)
