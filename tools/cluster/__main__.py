"""The command: `python -m tools.cluster up`; `--help` lists the others."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tools.cluster import lifecycle
from tools.cluster.layout import FOLDER, PORT, Layout


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.cluster", description="A local Kubernetes cluster of one node."
    )
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where everything of the cluster lies (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start it, and return when it is ready")
    up.add_argument(
        "--port",
        type=int,
        default=PORT,
        help="of the API server on loopback; 0 takes a free one (default: %(default)s)",
    )
    commands.add_parser("status", help="say whether it runs; exit code 1 if not")
    commands.add_parser("down", help="end it and remove all that it made")
    load = commands.add_parser("load", help="give the node the images of an OCI or Docker archive")
    load.add_argument("archive", type=Path)
    run = commands.add_parser("run", help="run a command in the network of the node")
    run.add_argument("words", nargs=argparse.REMAINDER)
    return parser.parse_args()


def main() -> None:
    """Run the command; exit 1 with the reason if it fails."""
    arguments = _arguments()
    layout = Layout(arguments.folder.resolve())
    try:
        match arguments.command:
            case "up":
                lifecycle.up(layout, arguments.port)
                print(f"export KUBECONFIG={layout.kubeconfig}")
            case "status":
                if not lifecycle.runs(layout):
                    sys.exit(f"no cluster runs in {layout.folder}")
                found = lifecycle.kubectl(layout, "get", "nodes,pods", "--all-namespaces", "--output=wide")
                print(found.stdout or found.stderr)
            case "down":
                lifecycle.down(layout)
            case "load":
                lifecycle.load(layout, arguments.archive)
            case "run":
                words = lifecycle.entered(layout, arguments.words)
                os.execvp(words[0], words)
    except lifecycle.ClusterError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
