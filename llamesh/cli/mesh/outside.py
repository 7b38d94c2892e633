"""Checks of what a mesh needs beyond its own files: the database, the object store, their clocks, and the devices of llama.cpp."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping

from llamesh.cli.mesh import members
from llamesh.cli.mesh.findings import Finding
from llamesh.installation import install_command

ASK_SECONDS = 30.0
"""Deadline in seconds of the program that asks. It waits 5 s for each answer, twice for an S3 server, and asks all sources at once."""
MAX_CLOCK_DIFFERENCE = 5.0
"""Maximum clock difference in seconds: tokens are valid for two seconds after they expire; S3 refuses requests that are 15 minutes off."""


def stores(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check the servers that the settings name (database, object store, sources of models), and compare their clocks with ours."""
    try:
        result = members.ask("llamesh.kit.readiness", environment=environment, seconds=ASK_SECONDS)
        answers = json.loads(result.stdout)
    except subprocess.TimeoutExpired:
        yield Finding("stores", "problem", f"no answer within {ASK_SECONDS:g} s", "see DATABASE_URL and MINIO_ENDPOINT")
        return
    except ValueError:
        last = (result.stderr.strip().splitlines() or ["no answer"])[-1]
        yield Finding("stores", "warning", f"they cannot be asked: {last}", install_command("mesh", "engine"))
        return
    for answer in answers:
        if answer["problem"]:
            yield Finding(answer["check"], "problem", answer["problem"], answer["fix"])
            continue
        yield Finding(answer["check"], "ok", answer["found"])
        off = answer["clock_seconds"]
        if off is not None and abs(off) > MAX_CLOCK_DIFFERENCE:
            words = f"it is {abs(off):.0f} s {'behind' if off > 0 else 'ahead of'} that of the {answer['check']}"
            yield Finding("clock", "problem", words, "set the clock of the one that is wrong (timedatectl, NTP)")


def quantiser(environment: Mapping[str, str]) -> Finding:
    """Check what the Quant service needs besides the mesh: llama.cpp's quantiser, and the packages that check its results."""
    try:
        result = members.ask("services.quant.readiness", environment=environment, seconds=ASK_SECONDS)
        answer = json.loads(result.stdout)
        problem, no_matrix = answer["problem"], answer["no_matrix"]
    except subprocess.TimeoutExpired:
        return Finding("quantiser", "warning", f"no answer within {ASK_SECONDS:g} s", "try again")
    except ValueError:
        last = (result.stderr.strip().splitlines() or ["no answer"])[-1]
        return Finding("quantiser", "problem", last, install_command("mesh", "engine", "quant"))
    if problem:
        return Finding("quantiser", "problem", problem, "until then the Quant service refuses every job")
    return Finding("quantiser", "ok", "can make and check variants" + (f"; {no_matrix}" if no_matrix else ""))


def devices(found: list[str]) -> Finding:
    """List the devices that llama.cpp can use."""
    return Finding("devices", "ok", ", ".join(found) if found else "the processor only")
