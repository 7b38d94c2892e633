"""`python -I -S tether.py PARENT PROGRAM ARGUMENTS...`: becomes PROGRAM, which the kernel ends when its parent does and which never
receives SIGTERM (llamesh/shutdown.py; the program inherits the signal mask and installs its own handler, so ignoring is not enough).

For programs that know nothing of our lifeline (Envoy). The wish is made here, in the child after it was started, because code
between fork and exec is unsafe in a process that has threads. The kernel watches the thread that started the child: the supervisor
starts everything from its main thread. Where the kernel has no such wish (macOS), a new start ends what is left over.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Make the wish, see that it did not come too late, block SIGTERM, and become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        sys.exit(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.execv(program[0], program)  # noqa: S606


if __name__ == "__main__":
    main()
