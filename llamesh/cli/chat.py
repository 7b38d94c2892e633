"""`llamesh chat`: talk to a model through the inference address, word by word as it answers."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter

from llamesh.cli import web
from llamesh.cli.connection import meant
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.inference import inference_address
from llamesh.cli.output import note

LIST_SECONDS = 5.0
"""How long a refusal waits for the names that would have been right."""


def chat(
    model: str,
    prompt: str = "",
    *,
    system: str = "",
    temperature: float | None = None,
    max_tokens: int | None = None,
    json_lines: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Talk to a model. Without a prompt: standard input, or in a terminal one question after the other.

    Parameters
    ----------
    model
        The name it is served by, or a server's id.
    prompt
        The question.
    system
        What the model is told before.
    temperature
        Randomness; 0 for none.
    max_tokens
        Most tokens of an answer.
    json_lines
        Print the answer's parts as they come, one JSON object a line.
    """
    messages = [{"role": "system", "content": system}] if system else []
    options = {"temperature": temperature, "max_tokens": max_tokens}
    request = {"stream": True, **{key: value for key, value in options.items() if value is not None}}
    talking = not prompt and sys.stdin.isatty()
    if talking:
        note(f"talking to {model}; Ctrl-D ends")
    for question in _questions() if talking else [prompt or sys.stdin.read()]:
        if not question.strip():
            raise CommandError("there is no question", hint='llamesh chat MODEL "..."', code=Exit.USAGE)
        messages.append({"role": "user", "content": question})
        said = _answer(model, {**request, "messages": messages}, json_lines=json_lines)
        messages.append({"role": "assistant", "content": said})


def _questions() -> Iterator[str]:
    while True:
        sys.stderr.write("> ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            sys.stderr.write("\n")
            return
        if line.strip():
            yield line.strip()


def _answer(model: str, request: dict[str, Any], *, json_lines: bool) -> str:
    """Ask, print what comes as it comes, and return all of it."""
    profile = meant()
    path, body = _addressed(model, request)
    address = inference_address(profile)
    said = []
    with web.answer(address, "POST", path, profile.token, json.dumps(body).encode()) as response:
        if response.status >= 400:
            raise _refused(web.refusal(response), address, profile.token)
        for event in _events(response):
            if "error" in event:
                raise CommandError(str(event["error"].get("message", event["error"])))
            piece = "".join(choice.get("delta", {}).get("content") or "" for choice in event.get("choices", ()))
            said.append(piece)
            print(json.dumps(event) if json_lines else piece, end="\n" if json_lines else "", flush=True)
    if not json_lines:
        print()
    return "".join(said)


def _refused(refusal: CommandError, address: str, token: str) -> CommandError:
    """The refusal; where nobody serves the model, with the names of those that are served."""
    if refusal.code is not Exit.NOT_FOUND:
        return refusal
    try:
        with web.answer(address, "GET", "/v1/models", token, timeout=LIST_SECONDS) as response:
            names = [str(item["id"]) for item in json.loads(response.read())["data"]]
    except (CommandError, ValueError, KeyError, TypeError):
        return refusal
    if not names:
        return CommandError(refusal.cause, hint="nothing is served yet: llamesh serve MODEL", code=refusal.code)
    return CommandError(refusal.cause, parts=[f"served: {', '.join(names)}"], code=refusal.code)


def _addressed(model: str, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A server's id goes into the path, a model's name into the body."""
    try:
        return f"/{uuid.UUID(model)}/v1/chat/completions", request
    except ValueError:
        return "/v1/chat/completions", {"model": model, **request}


def _events(lines: Any) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events, until [DONE]."""
    for line in lines:
        if line.startswith(b"data:"):
            content = line[5:].strip()
            if content == b"[DONE]":
                return
            yield json.loads(content)
