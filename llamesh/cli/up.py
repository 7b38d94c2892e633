"""`llamesh up` and `llamesh down`: the mesh of one machine, or its part of one, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

from cyclopts import Parameter

from llamesh.background import BackgroundTask
from llamesh.cli.durations import Duration
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.mesh import (
    before_start,
    checks,
    detached,
    leftovers,
    open_files,
    placement,
    renewal,
    restore_mark,
)
from llamesh.cli.mesh.components import components
from llamesh.cli.mesh.lock import MeshRunningError, announce_ready, held, holder, is_gone
from llamesh.cli.mesh.member_renewal import LOOK_SECONDS as RENEWAL_SECONDS
from llamesh.cli.mesh.member_renewal import MemberRenewal
from llamesh.cli.mesh.progress import READY_SECONDS, Waits, lacking_of
from llamesh.cli.mesh.service_manager import ServiceManager, without_service_manager
from llamesh.cli.mesh.settings import MeshSettings, read_settings
from llamesh.cli.mesh.supervisor import Supervisor
from llamesh.cli.mesh.welcome import show_addresses, warning_of_clear_passwords
from llamesh.cli.printing import note
from llamesh.envoy_binary import EnvoyNotFoundError
from llamesh.local_mesh import Addresses
from llamesh.locations import home_directory, run_directory
from llamesh.names import CONTROLLER, ENVOY, QUANT

HOME_SECONDS = 2.0
"""Seconds between two checks that the folder of the mesh still exists."""


def up(
    *,
    demo: bool = False,
    detach: bool = False,
    quant: bool = False,
    only: Annotated[list[str] | None, Parameter(negative="")] = None,
) -> int:
    """Start the whole mesh on this machine and keep it running until Ctrl-C.

    Parameters
    ----------
    demo
        Fetch a small model, serve it and ask it a question.
    detach
        Return when the mesh is ready; `llamesh down` ends it.
    quant
        Run the Quant service too, which makes quantised variants of models.
    only
        Run only these members here: gateway,contract,download,controller,quant,envoy. The others are at LLAMESH_MEMBER_ADDRESSES.
    """
    began = time.monotonic()
    named = placement.read(only or ())
    if quant or QUANT in named:
        # For every process of the mesh, as if it were set there.
        os.environ["LLAMESH_QUANT"] = "true"
    os.umask(0o077)
    settings = placement.placed(read_settings(os.environ), named)
    placement.check(settings, demo=demo)
    for warning in () if detach else (*settings.warnings, warning_of_clear_passwords(settings)):
        if warning:
            _say(f"warning: {warning}")
    try:
        # First of all: what a start writes would keep a restore from making the home whole.
        restore_mark.check(settings.home)
        for folder in (settings.home, settings.logs):
            before_start.make_usable(folder)
        if detach:
            return _detached(settings, demo=demo, began=began)
        with held(settings.home, settings.addresses, settings.only):
            open_files.raise_limit()
            before_start.make_usable(settings.run_dir)
            if forced := leftovers.clear(settings.home, settings.run_dir):
                _say(f"ended {forced} processes of an earlier mesh")
            for warning in before_start.check_machine(settings):
                _say(f"warning: {warning}")
            before_start.make_usable(settings.run_dir)
            try:
                return asyncio.run(_supervise(settings, demo=demo, began=began))
            finally:
                # After a forced end engines still notice that the mesh is gone.
                leftovers.clear(settings.home, settings.run_dir)
    except MeshRunningError as error:
        by = f" (process {error.holder.pid})" if error.holder else ""
        raise CommandError(
            f"a mesh is running already for {settings.home}{by}",
            hint="`llamesh status` shows it, `llamesh down` ends it; LLAMESH_HOME names another home",
        ) from None
    except restore_mark.HalfRestoredError as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from error
    except EnvoyNotFoundError as error:
        raise CommandError(str(error), hint="`llamesh doctor` shows what else is missing", code=Exit.USAGE) from error


def down(*, timeout: Duration = 60.0) -> int:
    """End the mesh that runs on this machine.

    Parameters
    ----------
    timeout
        How long to wait for running requests and the end: 30s, 2m, or seconds; then it is killed.
    """
    home = home_directory(os.environ)
    running = holder(home)
    if running is None:
        _say("no mesh is running here")
        return Exit.OK
    _say(f"stopping the mesh (process {running.pid})")
    running.signal(signal.SIGTERM)
    if not running.wait_gone(timeout):
        _say(f"it did not end within {timeout:g} s; it is killed")
        running.signal(signal.SIGKILL)
        running.wait_gone(5)
        # Its processes end with it, which is waited for, and a supervisor that was killed could not clean up itself.
        with contextlib.suppress(MeshRunningError, OSError), held(home, Addresses("", "")):
            leftovers.clear(home, run_directory(home, os.environ))
    _say("stopped")
    return Exit.OK


async def _supervise(settings: MeshSettings, *, demo: bool, began: float) -> int:
    manager = ServiceManager(os.environ)
    environment = without_service_manager(os.environ)
    patience = settings.member_patience_seconds
    supervisor = Supervisor(components(settings), settings.run_dir, settings.logs, _say, environment, patience)
    _listen_for_the_end(supervisor, manager)
    beside = [
        BackgroundTask("look after the home", _end_without_home(settings, supervisor), _failed, every=HOME_SECONDS)
    ]
    if settings.tls and settings.runs(ENVOY):
        certificate = renewal.Renewal(settings, _say)
        beside.append(BackgroundTask("look at the certificate", certificate.look, _failed, every=renewal.LOOK_SECONDS))
    if settings.member_addresses:
        members = MemberRenewal(settings, _say)
        beside.append(BackgroundTask("renew members' certificates", members.look, _failed, every=RENEWAL_SECONDS))
    if manager.alive_every:
        beside.append(BackgroundTask("sign of life", _alive(manager), _failed, every=manager.alive_every))
    for task in beside:
        task.start()
    greeting = asyncio.create_task(_greet(settings, manager, demo=demo, began=began))
    await supervisor.run()
    for task in beside:
        await task.close()
    greeting.cancel()
    await asyncio.gather(greeting, return_exceptions=True)
    if supervisor.refused:
        raise CommandError(supervisor.refused, code=Exit.USAGE)
    if supervisor.killed:
        return Exit.INTERRUPTED
    _say("stopped")
    return Exit.OK


def _listen_for_the_end(supervisor: Supervisor, manager: ServiceManager) -> None:
    """Any number of SIGTERM and SIGHUP, as scripts and service managers send them, end the mesh in order. A person who presses
    Ctrl-C twice, and SIGQUIT, end it at once."""
    interrupts = 0

    def stop_on(number: signal.Signals) -> None:
        nonlocal interrupts
        interrupts += number is signal.SIGINT
        if number is signal.SIGQUIT or interrupts > 1:
            _say("killing everything")
            supervisor.kill()
        elif not supervisor.stopping:
            _say("stopping: running requests are finished first (Ctrl-C twice to kill)")
            manager.stopping()
            supervisor.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue  # nohup: the end of the terminal is not the end of the mesh
        asyncio.get_running_loop().add_signal_handler(number, stop_on, number)


def _end_without_home(settings: MeshSettings, supervisor: Supervisor) -> Callable[[], Awaitable[None]]:
    """Return a check that ends a mesh whose folder was removed: no command finds such a mesh any more."""

    async def look() -> None:
        if not supervisor.stopping and is_gone(settings.home):
            _say(f"{settings.home} was removed while the mesh ran: the mesh ends")
            supervisor.kill()

    return look


def _alive(manager: ServiceManager) -> Callable[[], Awaitable[None]]:
    async def give() -> None:
        manager.alive()

    return give


def _failed(task: str, failure: Exception) -> None:
    _say(f"{task} failed and is tried again: {failure}")


async def _greet(settings: MeshSettings, manager: ServiceManager, *, demo: bool, began: float) -> None:
    """Print that the mesh is ready, or why it is not; the demo prints this itself."""
    showing = asyncio.create_task(_show_demo(settings, began)) if demo else None
    deadline = time.monotonic() + READY_SECONDS
    waits = Waits(settings.run_dir, began, _say)
    try:
        while lacking := await asyncio.to_thread(lacking_of, settings):
            waits.look()
            if time.monotonic() > deadline:
                deadline = float("inf")
                words = "".join(f"\n    {line}" for line in lacking)
                _say(f"not ready yet:{words}\n    `llamesh doctor` explains")
                # It is supervised and may become ready: a service manager must not end it for being slow.
                manager.ready(f"not ready yet: {'; '.join(lacking)}")
            await asyncio.sleep(0.1)
        manager.ready("ready")
        while not _announced(settings):  # noqa: ASYNC110 - a disk does not say when it has space again
            await asyncio.sleep(HOME_SECONDS)
        if showing:
            await showing
        else:
            _say(_ready(settings, began, "Ctrl-C stops"))
            show_addresses(settings)
    finally:
        if showing:
            showing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await showing


def _announced(settings: MeshSettings) -> bool:
    """Whether the lock file says that the mesh is ready. A full disk does not keep it from serving."""
    try:
        announce_ready(settings.home)
    except OSError as error:
        _failed("note in the lock file", error)
        return False
    return True


async def _show_demo(settings: MeshSettings, began: float) -> None:
    process = await asyncio.create_subprocess_exec(*_demo_command(settings, began), start_new_session=True)
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def _demo_command(settings: MeshSettings, began: float, *more: str) -> list[str]:
    place = [str(settings.home), settings.addresses.management, settings.addresses.inference]
    return [sys.executable, "-P", "-m", "llamesh.cli.mesh.demo", *place, f"{time.monotonic() - began:.3f}", *more]


def _detached(settings: MeshSettings, *, demo: bool, began: float) -> int:
    try:
        code = detached.start(settings)
    except KeyboardInterrupt:
        _say("the mesh goes on starting; `llamesh down` ends it")
        raise
    if code:
        return code
    if demo:
        return subprocess.run(_demo_command(settings, began, "detached"), check=False).returncode
    _say(_ready(settings, began, "`llamesh down` ends"))
    show_addresses(settings)
    if not settings.runs(CONTROLLER):
        return Exit.OK
    # In the background no user sees the log: without this warning the mesh would be up and could serve nothing.
    for finding in checks.engine({**os.environ, **settings.engine_environment}):
        if finding.state != "ok":
            _say(f"warning: {finding.check}: {finding.found}\n    -> {finding.fix}")
    return Exit.OK


def _ready(settings: MeshSettings, began: float, ends: str) -> str:
    pronoun = "them" if len(settings.only) > 1 else "it"
    return f"{placement.subject(settings)} ready after {time.monotonic() - began:.1f} s; {ends} {pronoun}"


def _say(text: str) -> None:
    # Its log may be on a full disk, or its reader gone: neither may end the mesh.
    with contextlib.suppress(OSError):
        note(text)
