"""Runs the Quant service: `python -m services.quant`."""

from llamesh.kit.serving import run_member
from services.quant.service import run

run_member("quant", run)
