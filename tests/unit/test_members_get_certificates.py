"""`llamesh certificates` makes what members need, and `llamesh up` renews it while the authority is on its machine."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llamesh.certificates import CertificateError
from llamesh.cli.main import run
from llamesh.cli.mesh import member_checks, member_renewal
from llamesh.cli.mesh.member_renewal import MemberRenewal
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.member_authority import AUTHORITY, MemberAuthority
from llamesh.member_certificates import CERTIFICATE, read
from llamesh.names import MEMBERS


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path))
    monkeypatch.setenv("LLAMESH_TRUST_DOMAIN", "mesh.test")
    return tmp_path


def test_every_member_gets_a_folder_and_the_setting_is_printed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["certificates"]) == 0
    assert capsys.readouterr().out.strip() == f"LLAMESH_MEMBER_CERTIFICATES={home}/members/{{member}}"
    now = datetime.now(UTC)
    for member in MEMBERS:
        found = read(home / "members" / member, "mesh.test", member, now)
        assert timedelta(hours=23.9) < found.ends - now <= timedelta(hours=24)
    before = (home / "members" / "gateway" / CERTIFICATE).read_bytes()
    assert run(["certificates"]) == 0
    assert (home / "members" / "gateway" / CERTIFICATE).read_bytes() == before, "it is not due"
    assert run(["certificates", "gateway", "--renew", "--hours", "2"]) == 0
    assert read(home / "members" / "gateway", "mesh.test", "gateway", now).ends - now < timedelta(hours=2.1)


def test_the_folder_of_the_settings_or_of_the_command_is_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_MEMBER_CERTIFICATES", str(home / "elsewhere" / "{member}"))
    assert run(["certificates", "envoy"]) == 0
    assert {path.name for path in (home / "elsewhere").iterdir()} == {AUTHORITY, "envoy"}
    assert run(["certificates", "envoy", "--folder", str(home / "named")]) == 0
    assert (home / "named" / "envoy" / CERTIFICATE).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["engine"], "there is no member engine"),
        (["gateway", "--hours", "0.5"], "--hours 0.5 is less than 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run(["certificates", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (home / "members").exists()


def test_an_authority_that_lost_its_key_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["certificates", "envoy"]) == 0
    (home / "members" / AUTHORITY / "..data" / "tls.key").unlink()
    assert run(["certificates", "--renew"]) == 2
    assert "cannot sign" in capsys.readouterr().err


@pytest.fixture
def settings(tmp_path: Path) -> MeshSettings:
    return MeshSettings(
        home=tmp_path,
        run_dir=tmp_path / "run",
        bind="127.0.0.1",
        public_host="localhost",
        inference_port=1,
        gateway_port=2,
        contract_port=3,
        download_port=4,
        drain_seconds=1,
        member_patience_seconds=20,
        member_addresses={"gateway": "127.0.0.1:1"},
        member_certificates=tmp_path / "members" / "{member}",
        trust_domain="mesh.test",
    )


def test_up_renews_what_is_due_of_the_members_that_are_here(settings: MeshSettings, tmp_path: Path) -> None:
    authority, now = MemberAuthority(tmp_path / "members", "mesh.test"), datetime.now(UTC)
    authority.issue("gateway", now - timedelta(hours=30))
    fresh = authority.issue("envoy", now - timedelta(hours=1))
    member_renewal.renew(settings)
    assert read(tmp_path / "members" / "gateway", "mesh.test", "gateway", now).ends > now + timedelta(hours=23)
    assert read(tmp_path / "members" / "envoy", "mesh.test", "envoy", now) == fresh
    assert not (tmp_path / "members" / "quant").exists()


def test_doctor_names_what_is_late_and_what_cannot_be_used(settings: MeshSettings, tmp_path: Path) -> None:
    authority, now = MemberAuthority(tmp_path / "members", "mesh.test"), datetime.now(UTC)
    authority.issue("gateway", now - timedelta(hours=30))
    authority.issue("envoy", now)
    authority.issue("gateway", now - timedelta(hours=2), renew=True)
    (found,) = member_checks.of_members(settings)
    assert (found.state, found.found[:15]) == ("ok", "2 certificates,")
    authority.issue("gateway", now - timedelta(hours=22), renew=True)
    (found,) = member_checks.of_members(settings)
    assert found.state == "warning"
    assert "is late: gateway (until" in found.found
    authority.issue("gateway", now - timedelta(hours=25), renew=True)
    states = {found.state: found.found for found in member_checks.of_members(settings)}
    assert "expired" in states["problem"]
    assert list(member_checks.of_members(replace(settings, member_addresses={}))) == []


@pytest.mark.parametrize(
    "changed",
    [{"member_addresses": {}}, {"member_certificates": Path("/certificates")}, {"member_certificates": None}],
)
def test_up_issues_nothing_where_others_do(settings: MeshSettings, tmp_path: Path, changed: dict) -> None:
    MemberAuthority(tmp_path / "members", "mesh.test").issue("gateway", datetime.now(UTC) - timedelta(hours=20))
    before = (tmp_path / "members" / "gateway" / CERTIFICATE).read_bytes()
    member_renewal.renew(replace(settings, **changed))
    assert (tmp_path / "members" / "gateway" / CERTIFICATE).read_bytes() == before


async def test_a_failure_is_said_once(settings: MeshSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    renewal = MemberRenewal(settings, said.append)
    failing = [
        CertificateError("no key", "restore it"),
        CertificateError("no key", "restore it"),
        None,
        OSError("full"),
    ]

    def renew(_settings: MeshSettings) -> None:
        if error := failing.pop(0):
            raise error

    monkeypatch.setattr(member_renewal, "renew", renew)
    for _ in range(4):
        await renewal.look()
    assert [words.count("not renewed") for words in said] == [1, 1]
    assert "no key\n    -> restore it" in said[0]
