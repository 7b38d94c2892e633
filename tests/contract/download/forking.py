"""A program that starts download services by fork: `python -m tests.contract.download.forking`.

It has imported the service, so a service starts in a fraction of a second and a test can kill many. Each line of its input is a JSON
object: `environment` and `log` of a service, `moment` if the service is to kill itself (`moments`), and `holes` if its disk has them
(`large_files`). It answers with the process id, and with the exit status once the service has ended. One service runs at a time.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from llamesh.kit.serving import run_member
from services.download.service import run
from tests.contract.download.large_files import keep_zeros_as_holes
from tests.contract.download.moments import kill_at


def serve(order: dict[str, Any]) -> None:
    """Be a service. Never returns."""
    status = 1
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(order["environment"])
        if order["moment"]:
            kill_at(*order["moment"])
        if order["holes"]:
            keep_zeros_as_holes()
        run_member("download", run)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(status)


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main() -> None:
    """Start one service after the other until the input ends."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            serve(json.loads(line))
        tell(child)
        tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
