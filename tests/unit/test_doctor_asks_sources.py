"""`llamesh doctor` asks the servers that models come from, and says which setting is wrong. The servers are stand-ins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.kit.source_places import RegistryPlace, read_places
from llamesh.kit.source_readiness import sources
from llamesh.kit.store_report import StoreReport
from tests.ports import free_ports
from tests.unit.fake_registry import fake_registry
from tests.unit.fake_s3 import FakeS3, fake_s3


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        server.buckets.add("models")
        yield server


def asked(tmp_path: Path, s3: FakeS3, **changes: object) -> dict[str, StoreReport]:
    place = {"endpoint": s3.endpoint, "bucket": "models", "access_key": "k", "secret_key": "hidden", "secure": False}
    places = json.dumps({"store": place | changes})
    settings = Settings(home=tmp_path, s3_sources=read_places(places))
    return {report.check: report for report in sources(settings)}


def test_a_bucket_that_can_be_read_is_ok(tmp_path: Path, s3: FakeS3) -> None:
    report = asked(tmp_path, s3)["s3://store"]
    assert (report.problem, report.found) == ("", f"S3 at {s3.endpoint}, bucket models")
    # A key that may read and not list is no problem.
    s3.refuse["GET"] = (403, "AccessDenied")
    assert asked(tmp_path, s3)["s3://store"].problem == ""


@pytest.mark.parametrize(
    ("changes", "code"), [({"bucket": "none"}, "NoSuchBucket"), ({"access_key": "bad"}, "InvalidAccessKeyId")]
)
def test_a_wrong_place_names_the_setting(tmp_path: Path, s3: FakeS3, changes: dict[str, str], code: str) -> None:
    s3.refused_keys.add("bad")
    report = asked(tmp_path, s3, **changes)["s3://store"]
    assert (code in report.problem, report.fix) == (True, "correct LLAMESH_S3_SOURCES")
    assert "hidden" not in str(report)


async def test_a_registry_answers_or_the_setting_is_named(tmp_path: Path, s3: FakeS3) -> None:
    (port,) = free_ports(1)
    async with fake_registry() as registry:
        registry.asks = "bearer"
        place = RegistryPlace(secure=False, username="ada", password=SecretStr("hidden"))
        hosts = (registry.host, s3.endpoint, f"127.0.0.1:{port}")
        settings = Settings(home=tmp_path, oci_registries=dict.fromkeys(hosts, place))
        found, other, away = await asyncio.to_thread(sources, settings)
        assert (found.check, found.problem) == (f"oci://{registry.host}", "")
        assert [token for _, token in registry.asked] == [""]
    assert ("does not answer as a registry" in other.problem, other.fix) == (True, "correct LLAMESH_OCI_REGISTRIES")
    assert ("does not answer:" in away.problem, "LLAMESH_OCI_REGISTRIES" in away.fix) == (True, True)


def test_servers_that_are_away_are_problems(tmp_path: Path, s3: FakeS3) -> None:
    (port,) = free_ports(1)
    settings = Settings(
        home=tmp_path, quant_service_url=f"http://127.0.0.1:{port}", quant_minio_endpoint=f"127.0.0.1:{port}"
    )
    service, store = sources(settings)
    assert (service.check, service.fix) == ("quant service", "start it, or correct QUANT_SERVICE_URL")
    assert (store.check, "QUANT_MINIO_ENDPOINT" in store.fix) == ("quant store", True)
    assert "does not answer" in service.problem
    assert "does not answer" in store.problem


def test_an_address_that_is_no_quant_service_is_a_problem(tmp_path: Path, s3: FakeS3) -> None:
    settings = Settings(home=tmp_path, quant_service_url=f"http://{s3.endpoint}", quant_service_token=SecretStr("x"))
    s3.buckets.clear()
    (report,) = sources(settings)
    assert report.problem == f"http://{s3.endpoint}/models answers 404"
    s3.refuse["GET"] = (401, "Unauthorized")
    (report,) = sources(settings)
    assert (report.problem, report.fix) == (f"http://{s3.endpoint} refuses the token", "set QUANT_SERVICE_TOKEN")


def test_without_sources_nothing_is_asked(tmp_path: Path) -> None:
    assert sources(Settings(home=tmp_path)) == []
