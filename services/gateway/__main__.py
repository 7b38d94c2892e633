"""Runs the gateway: `python -m services.gateway`."""

from llamesh.kit.serving import run_member
from services.gateway.service import run

run_member("gateway", run)
