"""Runs the download service: `python -m services.download`."""

from llamesh.kit.member_start import start

start("download", "services.download.service")
