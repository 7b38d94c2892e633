"""The download service as a process: `python -m services.download`."""

from llamesh.kit.serving import run
from services.download.service import serve

if __name__ == "__main__":
    run("download", serve)
