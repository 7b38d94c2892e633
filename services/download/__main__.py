"""Runs the download service: `python -m services.download`."""

from llamesh.kit.serving import run_member
from services.download.service import run

run_member("download", run)
