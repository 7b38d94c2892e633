"""Certificates of members change under load: no call and no stream ends, and those that cannot be used change nothing."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime, timedelta

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llamesh.kit import member_tls
from llamesh.kit.channels import channel
from llamesh.kit.member_tls import HEALTH_PART, MemberTls, open_member_tls
from llamesh.kit.rotating_channel import RotatingChannel
from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, KEY, read
from llamesh.v1 import admission_pb2, admission_pb2_grpc, controller_pb2, controller_pb2_grpc, gateway_pb2
from tests.contract.patience import PATIENCE, until
from tests.contract.secured import DOMAIN, Secured

LIFE = timedelta(seconds=10)
"""Life of the certificates of a test that lets them expire."""


class Admission(admission_pb2_grpc.AdmissionServiceServicer):
    """Answers Grant, and sends an item of WatchRevocations whenever it is told to."""

    def __init__(self) -> None:
        self.sent = 0

    async def Grant(self, request, context):
        await asyncio.sleep(0.05)
        return admission_pb2.GrantResponse()

    async def WatchRevocations(self, request, context):
        while True:
            self.sent += 1
            yield admission_pb2.WatchRevocationsResponse()
            await asyncio.sleep(0.05)


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(member_tls, "LOOK_SECONDS", 0.1)


@pytest.fixture
def secured(one_settings, tmp_path):
    return Secured(one_settings, tmp_path / "certificates", ("contract",))


@pytest.fixture
async def served(secured, start_member):
    servicer = Admission()
    add = admission_pb2_grpc.add_AdmissionServiceServicer_to_server
    await start_member(secured.settings, "contract", lambda member: add(servicer, member.server))
    return servicer


class Load:
    """Unary calls without a pause from several callers, and one stream, until they are stopped."""

    def __init__(self, connection: grpc.aio.Channel) -> None:
        self.stub = admission_pb2_grpc.AdmissionServiceStub(connection)
        self.done = 0
        self.streamed = 0
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._call()) for _ in range(4)]
        self._tasks.append(asyncio.create_task(self._follow()))

    async def _call(self) -> None:
        while not self._stop.is_set():
            # Neither waits for a connection nor is it repeated: a call that is dropped fails here.
            await self.once()
            self.done += 1

    async def once(self) -> None:
        """Make one call."""
        await self.stub.Grant(admission_pb2.GrantRequest(role=gateway_pb2.ROLE_USER), timeout=PATIENCE)

    async def _follow(self) -> None:
        async for _ in self.stub.WatchRevocations(admission_pb2.WatchRevocationsRequest(), wait_for_ready=True):
            self.streamed += 1
            if self._stop.is_set():
                return

    def ended(self) -> bool:
        """Whether a call or the stream has ended."""
        return any(task.done() for task in self._tasks)

    async def stop(self) -> None:
        """Stop, and raise the error of any call."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def progress(self) -> None:
        """Wait until calls have ended and messages have come."""
        calls, messages = self.done, self.streamed
        await until(lambda: self.ended() or (self.done > calls + 8 and self.streamed > messages))


async def test_no_call_and_no_stream_ends_while_certificates_are_replaced_and_expire(secured, served) -> None:
    """Both sides get new files at a quarter of their life, until three pairs have expired."""
    ends: list[datetime] = []

    async def renew() -> None:
        while True:
            for member in ("contract", "gateway"):
                secured.issue(member, LIFE)
            ends.append(_end(secured, "gateway"))
            await asyncio.sleep(LIFE.total_seconds() / 4)

    renewing = asyncio.create_task(renew())
    await until(lambda: ends)
    async with channel(secured.settings, "contract", "gateway") as connection:
        load = Load(connection)
        await until(lambda: load.ended() or len([each for each in ends if each < datetime.now(UTC)]) >= 3)
        await load.progress()
        await load.stop()
        # Each earlier connection ends with the last call on it: the one that is left carries the newest certificate.
        await load.once()
        # gRPC's object for a stream is in a cycle of references and holds its connection.
        await until(lambda: gc.collect() is not None and len(local_ports(secured)) <= 1)
        await load.once()
    renewing.cancel()
    assert load.streamed <= served.sent
    assert load.done > 50


def _end(secured: Secured, member: str) -> datetime:
    return read(secured.folder / member, DOMAIN, member, datetime.now(UTC)).ends


async def test_no_call_ends_when_a_connection_has_its_age(secured, start_member, monkeypatch) -> None:
    monkeypatch.setattr("llamesh.kit.member_port.CONNECTION_SECONDS", 1)
    add = admission_pb2_grpc.add_AdmissionServiceServicer_to_server
    await start_member(secured.settings, "contract", lambda member: add(Admission(), member.server))
    async with channel(secured.settings, "contract", "gateway") as connection:
        load = Load(connection)
        await load.progress()
        first = local_ports(secured)
        await until(lambda: load.ended() or local_ports(secured) - first)
        second = local_ports(secured)
        await until(lambda: load.ended() or local_ports(secured) - second)
        await load.progress()
        assert first & local_ports(secured), "the stream stays where it is"
        await load.stop()


def local_ports(secured: Secured) -> set[int]:
    """The ports from which this process has opened connections to the contract service."""
    port = int(secured.settings.member_addresses["contract"].rpartition(":")[2])
    found = psutil.Process().net_connections("tcp")
    return {
        each.laddr.port
        for each in found
        if each.raddr and each.raddr.port == port and each.status == psutil.CONN_ESTABLISHED
    }


async def test_no_call_ends_while_the_authority_is_replaced(secured, served) -> None:
    async with channel(secured.settings, "contract", "gateway") as connection:
        load = Load(connection)
        await load.progress()
        first = secured.files("gateway")[AUTHORITIES]
        assert secured.authority.replace_authority(datetime.now(UTC))
        assert not secured.authority.replace_authority(datetime.now(UTC)), "the new one does not sign yet"
        for member in ("contract", "gateway"):
            secured.issue(member)
            await load.progress()
        assert secured.files("gateway")[AUTHORITIES].endswith(first)
        # Later the new authority signs; its certificates are valid already.
        later = datetime.now(UTC) + timedelta(minutes=11)
        for member in ("gateway", "contract"):
            chain = _issued_at(secured, member, later)
            secured.replace(member, crt=chain[CERTIFICATE], key=chain[KEY], ca=chain[AUTHORITIES].replace(first, b""))
            await asyncio.sleep(0.3)
            await load.progress()
        await load.stop()


def _issued_at(secured: Secured, member: str, later: datetime) -> dict[str, bytes]:
    secured.issue(member, now=later)
    return secured.files(member)


async def test_new_calls_on_a_connection_whose_certificate_has_expired_are_refused(secured, served) -> None:
    secured.issue("gateway", timedelta(seconds=2))
    ends = _end(secured, "gateway")
    connection = secured.stranger("contract", secured.files("gateway"))
    stub = admission_pb2_grpc.AdmissionServiceStub(connection)
    request = admission_pb2.GrantRequest(role=gateway_pb2.ROLE_USER)
    await stub.Grant(request, timeout=PATIENCE)
    await asyncio.sleep((ends - datetime.now(UTC)).total_seconds() + 0.1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Grant(request, timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "expired" in (refused.value.details() or "")
    await connection.close()


async def health(secured: Secured) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
    async with grpc.aio.insecure_channel(f"unix:{secured.settings.socket('contract')}") as connection:
        request = health_pb2.HealthCheckRequest(service=HEALTH_PART)
        stub = health_pb2_grpc.HealthStub(connection)
        return (await stub.Check(request, timeout=PATIENCE, wait_for_ready=True)).status


@pytest.mark.parametrize(
    "damage",
    [
        lambda secured: secured.replace("contract", key=secured.files("gateway")[KEY]),
        lambda secured: secured.replace("contract", crt=b""),
        lambda secured: (secured.folder / "contract" / "..data").unlink(),
        lambda secured: secured.replace("contract", ca=secured.files("contract")[CERTIFICATE]),
    ],
    ids=["another key", "an empty certificate", "missing files", "no authority"],
)
async def test_files_that_cannot_be_used_change_nothing_and_health_says_so(secured, served, capsys, damage) -> None:
    serving = health_pb2.HealthCheckResponse

    async def shows(state) -> None:
        async with asyncio.timeout(PATIENCE):
            while await health(secured) != state:
                await asyncio.sleep(0.05)

    await shows(serving.SERVING)
    damage(secured)
    await shows(serving.NOT_SERVING)
    # A new connection still finds the earlier certificate.
    connection = secured.stranger("contract", secured.files("gateway")) if _has_authority(secured) else None
    async with channel(secured.settings, "contract", "gateway") as own:
        stub = admission_pb2_grpc.AdmissionServiceStub(own)
        await stub.Grant(admission_pb2.GrantRequest(role=gateway_pb2.ROLE_USER), timeout=PATIENCE)
    if connection:
        await connection.close()
    said = capsys.readouterr().out
    assert said.count("the certificate that is in use stays") == 1
    secured.issue("contract")
    await shows(serving.SERVING)


def _has_authority(secured: Secured) -> bool:
    try:
        return bool(secured.files("contract")[AUTHORITIES])
    except OSError:
        return False


async def test_a_watch_that_waits_for_its_server_uses_the_certificate_of_the_day_when_it_comes(
    secured, start_member, monkeypatch
) -> None:
    monkeypatch.setattr("llamesh.kit.rotating_channel._LOOK_SECONDS", 0.1)
    secured.issue("gateway", timedelta(seconds=2))
    async with channel(secured.settings, "contract", "gateway") as connection:
        watch = admission_pb2_grpc.AdmissionServiceStub(connection).WatchRevocations(
            admission_pb2.WatchRevocationsRequest(), wait_for_ready=True
        )
        first = asyncio.create_task(anext(aiter(watch)))
        await asyncio.sleep(1)
        secured.issue("gateway")
        await asyncio.sleep(2)
        add = admission_pb2_grpc.add_AdmissionServiceServicer_to_server
        await start_member(secured.settings, "contract", lambda member: add(Admission(), member.server))
        await asyncio.wait_for(first, PATIENCE)


async def test_one_process_reads_the_files_of_a_member_once(secured) -> None:
    assert open_member_tls(secured.settings, "gateway") is open_member_tls(secured.settings, "gateway")


async def test_files_are_compared_in_the_time_that_was_set_only(secured, monkeypatch) -> None:
    monkeypatch.setattr(member_tls, "LOOK_SECONDS", 3600.0)
    tls = MemberTls(secured.folder / "gateway", DOMAIN, "gateway")
    before = tls.look()
    secured.issue("gateway")
    assert tls.look() is before
    monkeypatch.setattr(member_tls, "LOOK_SECONDS", 0.0)
    assert tls.look() is not before


async def test_a_channel_over_tcp_is_used_like_any_other(secured, served) -> None:
    connection = channel(secured.settings, "contract", "gateway")
    assert isinstance(connection, RotatingChannel)
    await connection.channel_ready()
    assert connection.get_state() is grpc.ChannelConnectivity.READY
    stub = controller_pb2_grpc.ControllerServiceStub(connection)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetCapacity(controller_pb2.GetCapacityRequest(), timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await connection.close()
    with pytest.raises(grpc.aio.UsageError):
        await stub.GetCapacity(controller_pb2.GetCapacityRequest(), timeout=PATIENCE)
