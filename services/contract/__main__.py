"""Runs the contract service: `python -m services.contract`."""

from llamesh.kit.member_start import start

start("contract", "services.contract.service")
