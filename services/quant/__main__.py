"""Runs the Quant service: `python -m services.quant`."""

from llamesh.kit.member_start import start

start("quant", "services.quant.service")
