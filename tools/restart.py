"""Stop the mesh of this machine and start it again in the background with the members that it has: `make restart`.

`llamesh up` alone starts the members of the settings: without the Quant service that `llamesh up --quant` has started, and without the
selection of `--only`. A setting that says whether Quant runs counts, because a restart is how changed settings come into force.
"""

from __future__ import annotations

import os
import sys

from llamesh.cli.main import run
from llamesh.cli.mesh.checks import quant_runs
from llamesh.cli.mesh.lock import running_members
from llamesh.cli.mesh.settings import read_settings
from llamesh.kit.config_loading import WrongSettingsError, load_settings
from llamesh.local_mesh import running_here


def same_members() -> list[str]:
    """Return the options of `llamesh up` with which it starts the members that run now. WrongSettingsError if a setting is wrong."""
    settings = load_settings()
    if only := running_members(settings.home):
        return ["--only", ",".join(sorted(only))]
    decided = "quant" in settings.model_fields_set
    return ["--quant"] if not decided and running_here(os.environ) and quant_runs(read_settings(os.environ)) else []


def main() -> int:
    """Run the command."""
    try:
        options = same_members()
    except WrongSettingsError as error:
        print(error, file=sys.stderr)
        return 2
    return run(["down"]) or run(["up", "--detach", *options])


if __name__ == "__main__":
    sys.exit(main())
