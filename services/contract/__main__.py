"""Starts the contract service: `python -m services.contract`."""

from llamesh.kit.serving import run
from services.contract.service import serve

if __name__ == "__main__":
    run("contract", serve)
