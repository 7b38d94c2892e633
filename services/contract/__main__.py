"""Runs the contract service: `python -m services.contract`."""

from llamesh.kit.serving import run_member
from services.contract.service import run

run_member("contract", run)
