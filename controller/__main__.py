"""Runs the controller: `python -m controller`."""

from controller.service import run
from llamesh.kit.serving import run_member

run_member("controller", run)
