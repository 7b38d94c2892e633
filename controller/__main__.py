"""Runs the controller: `python -m controller`."""

from llamesh.kit.member_start import start

start("controller", "controller.service")
