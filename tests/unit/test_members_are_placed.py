"""`llamesh up --only`: which members may run without the others, what is checked for them, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.mesh import before_start, envoy_tls, lock, member_checks, placement, ports
from llamesh.cli.mesh.components import components
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.cli.mesh.welcome import lines, warning_of_clear_passwords
from llamesh.kit import health_names, member_calls, reflection
from llamesh.local_mesh import running_here
from llamesh.names import CONTRACT, CONTROLLER, DOWNLOAD, ENVOY, GATEWAY, MEMBERS, QUANT, WAKER
from tests.unit.test_start_names_what_prevents_it import settings

CALLED = (GATEWAY, CONTRACT, DOWNLOAD, CONTROLLER, WAKER)
ALL = {name: f"10.0.0.7:{9200 + number}" for number, name in enumerate(CALLED)}
SERVICES = {
    "llamesh.v1.GatewayService": GATEWAY,
    "llamesh.v1.SigningKeyService": GATEWAY,
    "llamesh.v1.StandingService": GATEWAY,
    health_names.OF_MESH: GATEWAY,
    "llamesh.v1.ContractService": CONTRACT,
    "llamesh.v1.AdmissionService": CONTRACT,
    "envoy.service.auth.v3.Authorization": CONTRACT,
    "envoy.service.accesslog.v3.AccessLogService": CONTRACT,
    "llamesh.v1.DownloadService": DOWNLOAD,
    "llamesh.v1.CatalogueService": DOWNLOAD,
    "llamesh.v1.CheckpointService": DOWNLOAD,
    "llamesh.v1.ControllerService": CONTROLLER,
    "envoy.service.discovery.v3.AggregatedDiscoveryService": CONTROLLER,
    "llamesh.v1.QuantService": QUANT,
}
"""The member that serves each service. Every member serves health, metrics and reflection."""


def at(home: Path, *only: str, **more: object) -> MeshSettings:
    """Settings of a machine on which these members run."""
    given = replace(settings(home), **{"member_addresses": ALL, **more})
    return placement.placed(given, placement.read(only))


def refusal(placed: MeshSettings, **more: bool) -> CommandError:
    with pytest.raises(CommandError) as refused:
        placement.check(placed, **more)
    assert refused.value.code == Exit.USAGE
    assert refused.value.hint
    return refused.value


@pytest.mark.parametrize("words", [("gateway,envoy",), ("gateway", "envoy"), (" gateway , envoy,", "gateway")])
def test_names_are_separated_by_commas_or_given_again(words: tuple[str, ...]) -> None:
    assert placement.read(words) == {"gateway", "envoy"}


def test_without_the_option_the_whole_mesh_runs(tmp_path: Path) -> None:
    assert placement.read(()) == frozenset()
    whole = placement.placed(settings(tmp_path), frozenset())
    placement.check(whole, demo=True)
    assert [name for name in MEMBERS if whole.runs(name)] == [*CALLED[:4], ENVOY]
    assert placement.warnings(whole) == placement.options(whole) == []


@pytest.mark.parametrize("words", ["gateways", "waker", "", ","])
def test_a_name_that_is_none_is_refused_with_the_names(words: str) -> None:
    with pytest.raises(CommandError, match="--only") as refused:
        placement.read([words])
    assert refused.value.code == Exit.USAGE
    assert refused.value.hint == "members are gateway, contract, download, controller, quant, envoy"


def test_all_members_by_name_are_the_whole_mesh(tmp_path: Path) -> None:
    named = ("gateway", "contract", "download", "controller", "envoy")
    assert at(tmp_path, *named, member_addresses={}).only == frozenset()
    assert at(tmp_path, *named, quant=True).only == set(named), "quant is elsewhere"


def test_the_calls_are_those_of_the_table(tmp_path: Path) -> None:
    """`llamesh.kit.member_calls` lists methods, and the command may not import it."""
    everywhere = {health_names.SERVICE, "llamesh.v1.MetricsService", *reflection.NAMES}
    assert SERVICES.keys() | everywhere == member_calls.CALLS.keys()
    calls = {(caller, owner) for service, owner in SERVICES.items() for caller in member_calls.CALLS[service]}
    calls |= {(GATEWAY, name) for name in MEMBERS if name not in (GATEWAY, ENVOY)}
    calls.add((ENVOY, WAKER))
    assert {(caller, called) for caller, found in placement.CALLS.items() for called in found} == calls


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_members_run_alone_if_every_member_has_an_address(tmp_path: Path, count: int) -> None:
    for named in combinations((GATEWAY, CONTRACT, DOWNLOAD, CONTROLLER, ENVOY), count):
        placed = at(tmp_path, *named)
        placement.check(placed)
        assert [name for name in MEMBERS if placed.runs(name)] == [name for name in MEMBERS if name in named]
        assert placement.options(placed) == ["--only", ",".join(sorted(named))]


@pytest.mark.parametrize("missing", CALLED)
def test_a_member_without_an_address_is_named_with_those_that_call_it(tmp_path: Path, missing: str) -> None:
    member = CONTROLLER if missing == WAKER else missing
    addresses = {name: address for name, address in ALL.items() if name != missing}
    away = refusal(at(tmp_path, ENVOY, member_addresses=addresses))
    assert away.cause == f"--only envoy: {missing} has no address"
    assert away.parts == (f"envoy calls {missing}",)
    assert away.hint.startswith(f"add {missing}=HOST:PORT to LLAMESH_MEMBER_ADDRESSES")
    here = refusal(at(tmp_path, member, member_addresses=addresses))
    assert here.cause == f"--only {member}: {missing} has no address"
    (words,) = here.parts
    assert words.startswith(f"{missing} is called from elsewhere, by ")
    assert words.endswith("envoy")


def test_members_on_one_machine_need_no_address_of_each_other(tmp_path: Path) -> None:
    """Envoy is elsewhere, and calls all four."""
    found = refusal(at(tmp_path, *CALLED[:4], member_addresses={}))
    assert [words.partition(" is ")[0] for words in found.parts] == [*CALLED]
    assert all(words.endswith("by envoy") for words in found.parts)


def test_the_quant_service_counts_if_the_mesh_has_one(tmp_path: Path) -> None:
    placement.check(at(tmp_path, GATEWAY))
    assert refusal(at(tmp_path, GATEWAY, quant=True)).parts == ("gateway calls quant",)
    placement.check(at(tmp_path, GATEWAY, quant=True, member_addresses=ALL | {QUANT: "10.0.0.7:9300"}))


def test_a_demo_needs_the_whole_mesh(tmp_path: Path) -> None:
    assert refusal(at(tmp_path, GATEWAY), demo=True).cause == "--demo needs the whole mesh on this machine"


@pytest.mark.parametrize("only", [(), (GATEWAY, CONTRACT), (*CALLED[:4],)])
def test_one_port_for_the_probes_of_several_members_is_refused(tmp_path: Path, only: tuple[str, ...]) -> None:
    found = refusal(at(tmp_path, *only, probe_port=9300))
    assert found.cause.startswith("LLAMESH_PROBE_PORT is 9300, where one member alone can listen, and gateway")
    assert "unset it" in found.hint


@pytest.mark.parametrize("only", [(GATEWAY,), (ENVOY,), (GATEWAY, ENVOY)])
def test_one_member_may_have_a_port_for_probes(tmp_path: Path, only: tuple[str, ...]) -> None:
    placement.check(at(tmp_path, *only, probe_port=9300))


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ((CONTROLLER, DOWNLOAD), ["engines are processes"]),
        ((ENVOY,), ["engines are processes"]),
        ((CONTROLLER, ENVOY), ["models are in a folder"]),
        ((DOWNLOAD,), ["models are in a folder"]),
        ((GATEWAY, CONTRACT), []),
    ],
)
def test_what_needs_one_machine_is_a_warning(tmp_path: Path, only: tuple[str, ...], words: list[str]) -> None:
    found = placement.warnings(at(tmp_path, *only))
    assert [each[: len(word)] for each, word in zip(found, words, strict=True)] == words
    assert placement.warnings(at(tmp_path, *only, runtime="kubernetes", minio_endpoint="minio:9000")) == []


def test_only_the_named_components_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVOY_BIN", "/nowhere/envoy")
    found = components(at(tmp_path, GATEWAY, CONTROLLER))
    assert [each.name for each in found] == [CONTROLLER, GATEWAY], "no Envoy is looked for"


def test_the_ports_and_the_certificate_of_envoy_are_checked_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = [ports.PortProblem("port 8200 is taken")]
    monkeypatch.setattr(ports, "taken", lambda *_: taken)
    tls = {"tls_certificate": "/nowhere.pem", "tls_key": "/nowhere.key"}
    list(before_start.check_machine(at(tmp_path, GATEWAY, **tls)))
    certificates = tmp_path / "{member}"
    with pytest.raises(CommandError, match=r"envoy/tls\.crt cannot be read"):
        list(before_start.check_machine(at(tmp_path, ENVOY, member_certificates=certificates)))
    monkeypatch.setattr(envoy_tls, "check", lambda _: None)
    with pytest.raises(CommandError, match="Envoy cannot listen"):
        list(before_start.check_machine(at(tmp_path, ENVOY)))
    with pytest.raises(CommandError, match=r"nowhere\.pem"):
        list(before_start.check_machine(at(tmp_path, ENVOY, **tls)))


def test_llama_cpp_is_looked_for_where_engines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("no engine runs here")

    monkeypatch.setattr("llamesh.cli.mesh.checks.openmp", never)
    list(before_start.check_machine(at(tmp_path, GATEWAY)))
    with pytest.raises(AssertionError, match="no engine"):
        list(before_start.check_machine(at(tmp_path, CONTROLLER)))
    list(before_start.check_machine(at(tmp_path, CONTROLLER, runtime="kubernetes")))


def test_no_address_of_what_is_elsewhere_is_printed(tmp_path: Path) -> None:
    services = at(tmp_path, GATEWAY, CONTRACT, bind="0.0.0.0")
    assert placement.subject(services) == "gateway and contract are"
    assert lines(services, ["10.0.0.7"]) == [
        "  gateway     10.0.0.7:9200",
        "  contract    10.0.0.7:9201",
        f"  logs        {services.logs}",
    ]
    assert warning_of_clear_passwords(services) == ""
    front = at(tmp_path, ENVOY)
    assert placement.subject(front) == "envoy is"
    assert any(front.addresses.management in line for line in lines(front, []))


def test_a_machine_without_envoy_has_no_mesh_for_commands(tmp_path: Path) -> None:
    here = {"LLAMESH_HOME": str(tmp_path)}
    for only, there in (((GATEWAY,), False), ((ENVOY,), True), ((), True)):
        placed = at(tmp_path, *only)
        with lock.held(tmp_path, placed.addresses, placed.only):
            assert (running_here(here) is not None) is there, only
            assert lock.running_members(tmp_path) == set(only)
    assert lock.running_members(tmp_path) == frozenset()


def test_doctor_expects_certificates_of_the_members_here(tmp_path: Path) -> None:
    certificates = tmp_path / "members" / "{member}"
    assert list(member_checks.of_members(at(tmp_path, GATEWAY, member_certificates=certificates))) == []
    (found,) = member_checks.of_members(at(tmp_path, ENVOY, member_certificates=certificates))
    assert found.state == "problem"
