"""Ties a process to its parent: the kernel kills it when the parent dies. Linux only; elsewhere nothing happens.

`python -I -S tether.py PARENT PROGRAM ARGUMENTS...` becomes PROGRAM, tied to its parent and with SIGTERM blocked (llamesh/shutdown.py). It
is for programs that do not know the lifeline (Envoy), and for those that must end even while they are stopped (SIGSTOP). PROGRAM inherits
the signal mask and installs its own handler, so ignoring SIGTERM would not be enough. The kernel watches the thread that started the child:
a supervisor starts everything from its main thread.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
# Loaded here, because `kill_with_parent` also runs between fork and exec, where loading a library is unsafe.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def kill_with_parent() -> None:
    """Let the kernel kill this process when its parent dies. Raises OSError. A parent that has already died is not detected."""
    if _LIBC is not None and _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def tethered(parent: int, *program: str) -> list[str]:
    """Return the command that starts a program tied to its parent, which has this process id."""
    return [sys.executable, "-I", "-S", __file__, str(parent), *program]


def main() -> None:
    """Tie this process to its parent, block SIGTERM, and become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    kill_with_parent()
    if os.getppid() != parent:
        sys.exit(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.execv(program[0], program)  # noqa: S606


if __name__ == "__main__":
    main()
