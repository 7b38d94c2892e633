"""The first process of the cluster's namespaces: prepares them, starts the programs and restarts those that end.

`tools.cluster.lifecycle` starts it. One loop does all: every tick it reaps processes that ended (as the first process of a process
namespace it is the parent of every orphan, such as containerd's shims), and starts each program whose precondition holds. A program that
ends is started again after a pause, since a program of Kubernetes ends if another one does not answer. If this process ends, however that
happens, the kernel ends all others of the namespace, and mounts and network disappear with the last of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.cluster import machine
from tools.cluster.layout import API_PORT, BIN, PATH, Layout
from tools.cluster.programs import Program, programs

TICK = 0.05
PAUSE_SECONDS = 1.0
"""Between the end of a program and its next start."""


class Node:
    """Runs the programs of a cluster."""

    def __init__(self, layout: Layout, listener: int) -> None:
        self._layout = layout
        self._listener = listener
        relay = [str(BIN / "relay"), str(listener), f"127.0.0.1:{API_PORT}"]
        self._waiting: dict[str, tuple[Program, float]] = {
            program.name: (program, 0.0) for program in [*programs(layout), Program("relay", relay)]
        }
        """Programs that do not run, with the time before which each is not started."""
        self._running: dict[int, tuple[Program, subprocess.Popen[bytes]]] = {}

    def run(self) -> None:
        """Run until a signal ends this process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # The first process of a namespace ignores signals that it does not handle.
            signal.signal(number, lambda *_: os._exit(0))
        while True:
            self._reap()
            now = time.monotonic()
            for program, earliest in list(self._waiting.values()):
                if now >= earliest and program.precondition():
                    self._start(program)
            time.sleep(TICK)

    def _start(self, program: Program) -> None:
        descriptors = [self._listener] if program.name == "relay" else []
        with (self._layout.logs / f"{program.name}.log").open("ab") as log:
            process = subprocess.Popen(
                program.words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._layout.state,
                env={"PATH": PATH, "HOME": str(self._layout.state)},
                pass_fds=descriptors,
                start_new_session=True,
            )
        del self._waiting[program.name]
        self._running[process.pid] = (program, process)

    def _reap(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            if found := self._running.pop(process, None):
                program, known = found
                # Else the library would wait for it itself.
                known.returncode = os.waitstatus_to_exitcode(status)
                print(f"{program.name} ended with {known.returncode}", flush=True)
                self._waiting[program.name] = (program, time.monotonic() + PAUSE_SECONDS)


def main() -> None:
    """Prepare the namespaces and run: FOLDER LISTENER."""
    layout = Layout(Path(sys.argv[1]))
    # This /proc is still that of the machine, so this is the id by which others know this process.
    layout.process.write_text(str(Path("/proc/self").readlink()), encoding="ascii")
    machine.mount_file_systems(layout)
    machine.make_network()
    Node(layout, int(sys.argv[2])).run()


if __name__ == "__main__":
    main()
