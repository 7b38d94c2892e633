"""What a run that issues certificates does with Secrets, rights and API servers that do not let it. Against a stand-in of the cluster."""

from __future__ import annotations

import copy
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.kubernetes import certificate_run
from controller.kubernetes.certificate_run import MAX_PASSES, MemberSecrets, RefusedError, keep
from controller.kubernetes.certificate_secrets import UnusableSecretError
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, Object
from llamesh.member_authority import AUTHORITY_LIFE, MemberAuthority
from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, KEY, MemberCertificate
from tests.contract.kubernetes.issuing import (
    DUE,
    HOUR,
    NOW,
    PLACE,
    ROTATION,
    WANTED,
    Disturbed,
    check_whole,
    mounted,
    run,
    writes,
)
from tests.kubernetes_cluster import StandIn

GARBAGE = b64encode(b"garbage").decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {KEY: GARBAGE}}, "tls.key is no key"),
        ({"data": {CERTIFICATE: GARBAGE}}, "tls.crt is no certificate"),
        ({"data": {AUTHORITIES: None}}, "it has no ca.crt"),
        ({"metadata": {"labels": None}}, "another program made it"),
        ({"metadata": {"annotations": {"cert-manager.io/certificate-name": "x"}}}, "it is cert-manager's"),
    ],
)
async def test_a_secret_that_cannot_be_used_is_named_and_the_others_are_renewed(
    cluster: StandIn, api: KubernetesApi, tmp_path: Path, change: Object, said: str
) -> None:
    await run(api)
    wrong = f"{PLACE}/llamesh-download-tls"
    await api.merge(wrong, change)
    before = copy.deepcopy(cluster.objects[wrong])
    with pytest.raises(
        UnusableSecretError, match=f"the Secret llamesh-download-tls cannot be used: .*{said}"
    ) as refused:
        await run(api, now=DUE)
    assert "kubectl delete secret llamesh-download-tls" in str(refused.value)
    assert cluster.objects[wrong] == before
    assert mounted(cluster, "gateway", tmp_path, DUE).ends == DUE + 24 * HOUR
    cluster.remove(wrong)
    await run(api, now=DUE)
    check_whole(cluster, tmp_path, DUE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {KEY: GARBAGE}}, "tls.key is no key"),
        ({"data": {AUTHORITIES: GARBAGE}}, "ca.crt is no certificate"),
        ({"data": {KEY: None}}, "it has no tls.key"),
        ({"data": {"old.key": None}}, "it has no old.key"),
        ({"metadata": {"labels": None}}, "another program made it"),
    ],
)
async def test_an_authority_that_cannot_be_used_is_named_and_nothing_is_written(
    cluster: StandIn, api: KubernetesApi, change: Object, said: str
) -> None:
    await run(api, ROTATION)
    await api.merge(f"{PLACE}/llamesh-authority", change)
    done = len(writes(cluster))
    with pytest.raises(UnusableSecretError, match=f"the Secret llamesh-authority cannot be used: .*{said}.*issues all"):
        await run(api, now=DUE)
    assert len(writes(cluster)) == done


async def test_an_authority_that_has_expired_is_named(cluster: StandIn, api: KubernetesApi) -> None:
    await run(api)
    with pytest.raises(UnusableSecretError, match=r"the Secret llamesh-authority cannot be used: .*has expired"):
        await run(api, now=NOW + AUTHORITY_LIFE + HOUR)


@pytest.mark.parametrize("verb", ["get", "create", "patch"])
async def test_a_missing_right_is_named_with_the_manifest(cluster: StandIn, api: KubernetesApi, verb: str) -> None:
    if verb == "get":
        cluster.fault = (403, 'secrets "x" is forbidden: User "test" cannot get resource "secrets"')
    elif verb == "patch":
        await run(api)
    cluster.refused = {"/secrets": 403}
    with pytest.raises(RefusedError) as refused:
        await run(api, now=DUE)
    assert f"no right to {verb} secrets/llamesh-" in str(refused.value)
    assert "in the namespace mesh: apply deploy/kubernetes/certificate-rights.yaml" in str(refused.value)


@pytest.mark.parametrize(
    ("status", "said"), [(403, "forbids to get .* a quota"), (404, "is the namespace there"), (422, "status 422")]
)
async def test_a_refusal_is_said_without_the_answer(
    cluster: StandIn, disturbed: Callable[..., Disturbed], status: int, said: str
) -> None:
    async def refuse() -> None:
        raise ClusterError(status, "what was sent")

    with pytest.raises(RefusedError, match=said if status == 403 else f"create .*{said}") as refused:
        await run(disturbed("GET" if status == 403 else "WRITE", 1, refuse))
    assert "what was sent" not in str(refused.value)


async def test_an_api_server_that_is_away_is_asked_again_for_a_bounded_time(
    cluster: StandIn, api: KubernetesApi, tmp_path: Path
) -> None:
    cluster.fault = (503, "away")
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if back and len(pauses) == 3:
            cluster.fault = None

    back = False
    with pytest.raises(RefusedError, match=f"after {MAX_PASSES} attempts: the API server did not get .* answers 503"):
        await keep(MemberSecrets(api, "mesh"), WANTED, lambda: NOW, pause)
    assert len(pauses) == MAX_PASSES - 1
    assert pauses == sorted(pauses)
    assert sum(pauses) < 60
    back = True
    pauses.clear()
    await keep(MemberSecrets(api, "mesh"), WANTED, lambda: NOW, pause)
    assert len(pauses) == 3
    check_whole(cluster, tmp_path, NOW)


@pytest.mark.parametrize("memory", [True, False])
async def test_the_folder_is_private_and_is_removed(
    api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(certificate_run, "_MEMORY", place if memory else tmp_path / "missing")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere" if memory else place))
    seen: list[int] = []

    class Watched(MemberAuthority):
        def issue(self, *arguments: Any, **more: Any) -> MemberCertificate:
            found = super().issue(*arguments, **more)
            (folder,) = place.iterdir()
            seen.extend(path.stat().st_mode & 0o077 for path in (folder, *folder.rglob("*")))
            return found

    monkeypatch.setattr(certificate_run, "MemberAuthority", Watched)
    await run(api)
    assert set(seen) == {0}
    assert not list(place.iterdir())
    with pytest.raises(UnusableSecretError):
        await run(api, now=NOW + AUTHORITY_LIFE + HOUR)
    assert not list(place.iterdir())
