"""Runs the download service: `python -m services.download`."""

from llamesh.kit.serving import run_member
from services.download.service import serve

run_member("download", serve)
