"""A pair of certificate and key is judged before anybody relies on it; what is wrong is said with its remedy."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llamesh import certificates
from llamesh.certificates import CertificateError
from llamesh.cli.mesh.authority import Files, issue

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    issue(Files(tmp_path), ["localhost", "127.0.0.1", "LLM.lan.", "[::1]"], NOW)
    return Files(tmp_path)


def read(files: Files, now: datetime = NOW) -> certificates.Certificate:
    return certificates.read(str(files.certificate), str(files.key), now)


def test_names_are_written_one_way(files: Files) -> None:
    found = read(files)
    assert found.names == ("localhost", "llm.lan", "127.0.0.1", "::1")
    assert [found.covers(host) for host in ("LLM.LAN", "[::1]", "127.0.0.1", "other.lan")] == [True, True, True, False]


@pytest.mark.parametrize("name", ["http://x", "x:80", "a b", "", "user@x"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CertificateError, match="no host name"):
        issue(Files(tmp_path), [name], NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_keeps_what_does_and_renews_what_does_not(files: Files) -> None:
    authority = files.authority.read_bytes()
    assert issue(files, ["localhost"], NOW)[1] is False
    assert issue(files, ["localhost"], NOW + timedelta(days=360))[1] is False
    renewed, made = issue(files, ["localhost"], NOW + timedelta(days=370))
    assert made
    assert renewed.days_left(NOW + timedelta(days=370)) == 397
    assert issue(files, ["localhost", "new.lan"], NOW + timedelta(days=371))[1] is True
    assert files.authority.read_bytes() == authority


def test_the_time_counts(files: Files) -> None:
    with pytest.raises(CertificateError, match="expired on 2027-12-03") as caught:
        read(files, NOW + timedelta(days=398))
    assert "tls init" in caught.value.remedy
    with pytest.raises(CertificateError, match="not valid before") as caught:
        read(files, NOW - timedelta(days=1))
    assert "clock" in caught.value.remedy


def test_a_key_of_another_certificate_is_refused(files: Files, tmp_path: Path) -> None:
    other = Files(tmp_path / "other")
    issue(other, ["localhost"], NOW)
    with pytest.raises(CertificateError, match="does not belong"):
        certificates.read(str(files.certificate), str(other.key), NOW)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_key_that_cannot_be_read_is_named(files: Files) -> None:
    files.key.chmod(0)
    with pytest.raises(CertificateError, match="cannot be read by this user"):
        read(files)


def test_envoy_gets_both_in_one_private_file_and_only_if_they_changed(files: Files, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert certificates.hand_to_envoy(read(files), run)
    assert not certificates.hand_to_envoy(read(files), run)
    file = certificates.secret_file(run)
    assert file.stat().st_mode & 0o777 == 0o600
    (secret,) = json.loads(file.read_text())["resources"]
    assert secret["tls_certificate"]["certificate_chain"]["inline_string"] == files.certificate.read_text()
    assert [path.name for path in run.iterdir()] == [file.name]
