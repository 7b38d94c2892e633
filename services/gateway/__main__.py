"""Runs the gateway: `python -m services.gateway`."""

from llamesh.kit.member_start import start

start("gateway", "services.gateway.service")
