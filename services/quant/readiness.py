"""The program that says whether this installation can quantise: `python -m services.quant.readiness`, for `llamesh doctor` and `up`.

It prints one JSON object: `problem` is empty, or says what is missing and how to install it; `no_matrix` says so of
importance matrices, without which most types can be made.
"""

from __future__ import annotations

import json
import sys

from llamesh.kit.config_loading import readable_settings
from llamesh.kit.errors import MeshError
from services.quant import submission


def main() -> int:
    """Print the answer. The exit code is 0, whatever the answer is."""
    settings = readable_settings()[0]
    try:
        submission.check_engine(settings)
        problem = ""
    except MeshError as error:
        problem = error.message
    answer = {"problem": problem, "no_matrix": submission.missing_for_matrix(settings)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
