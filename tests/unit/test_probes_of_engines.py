"""A probe tells an engine that is silent from one that nobody can reach, and from a failure of its own."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import uvloop

from controller.runtimes import probe


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_full_queue_of_connections_is_silence(loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(probe, "SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "e.sock"))
        listener.listen(0)

        async def ask() -> list[object]:
            clock = asyncio.get_running_loop().time
            began = clock()
            answers: list[object] = [await probe.counters(str(tmp_path / "e.sock")) for _ in range(4)]
            # Each waits for its whole time, by a clock of milliseconds: no two probes fail within one moment.
            assert clock() - began >= 4 * 0.199
            return answers

        run = asyncio.run if loop == "asyncio" else uvloop.run
        assert run(ask()) == [None] * 4


@pytest.mark.parametrize("what", ["nothing", "a file", "nobody listens", "its directory is a file"])
async def test_an_engine_without_a_listener_is_unreachable(what: str, tmp_path: Path) -> None:
    path = tmp_path / "d" / "e.sock"
    if what == "its directory is a file":
        path.parent.write_text("")
    elif what != "nothing":
        path.parent.mkdir()
        if what == "a file":
            path.write_text("")
        else:
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(path))
    with pytest.raises(probe.UnreachableError):
        await probe.counters(str(path))


async def test_a_failure_of_our_own_is_no_word_about_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none_free(_: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("asyncio.open_unix_connection", none_free)
    with pytest.raises(OSError, match="Too many open files") as caught:
        await probe.counters(str(tmp_path / "e.sock"))
    assert not isinstance(caught.value, probe.UnreachableError)
