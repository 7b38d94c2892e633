"""`llamesh chat`: talk to a model through the inference address, word by word as it answers."""

from __future__ import annotations

import io
import json
import os
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from llamesh.cli.addressee import Addressee, check_served, with_served_names
from llamesh.cli.connection import meant
from llamesh.cli.context_sizes import slot_context
from llamesh.cli.conversation import Conversation, content, encoded, image_paths, path_alone
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.inference import inference_address
from llamesh.cli.markdown import DIM, NORMAL, Markdown
from llamesh.cli.output import text
from llamesh.cli.printing import note, put, say
from llamesh.cli.talk import Talk, reader
from llamesh.cli.wrapping import Wrapper, safe

MAX_PIPED = 16 * 2**20
"""Maximum length in characters of standard input in a question."""


def chat(
    model: str,
    prompt: str = "",
    *,
    system: str = "",
    temperature: float | None = None,
    max_tokens: int | None = None,
    image: Annotated[Sequence[Path], Parameter(negative="")] = (),
    verbose: Annotated[bool, Parameter(negative="")] = False,
    json_lines: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Talk to a model. Without a prompt: standard input, or a conversation in a terminal (/help there).

    Parameters
    ----------
    model
        The name it is served by, a server's id, or a name of a model that one server serves.
    prompt
        The question. What comes through a pipe is put below it.
    system
        System prompt.
    temperature
        Randomness; 0 for none.
    max_tokens
        Most tokens of an answer.
    image
        An image that belongs to the question; several times for several.
    verbose
        Show tokens per second and the context used.
    json_lines
        Print the answer's parts as they come, one JSON object a line.
    """
    converse(
        Addressee(model),
        prompt,
        system=system,
        temperature=temperature,
        max_tokens=max_tokens,
        image=image,
        verbose=verbose,
        json_lines=json_lines,
    )


def converse(
    addressee: Addressee,
    prompt: str,
    *,
    system: str = "",
    temperature: float | None = None,
    max_tokens: int | None = None,
    image: Sequence[Path] = (),
    verbose: bool = False,
    json_lines: bool = False,
) -> None:
    """Talk to an addressee; see `chat`."""
    options = {"temperature": temperature, "max_tokens": max_tokens}
    talk = Conversation(system)
    for name, value in options.items():
        if value is not None:
            talk.set(name, str(value))
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Bytes that are not text in the terminal's encoding are accepted too: the name of a file keeps them.
        sys.stdin.reconfigure(errors="surrogateescape")
    if not prompt and not image and sys.stdin.isatty():
        # As it was typed: a lookup may find another name for requests.
        model, profile = addressee.name, meant()
        check_served(addressee, inference_address(profile), profile.token)
        note(f"talking to {text(model)}; /help lists commands, Ctrl-D ends")
        ask = partial(_answer, addressee, json_lines=json_lines, stoppable=True)
        Talk(model, talk, ask, reader(), verbose=verbose).go_on()
        return
    _check_paths(addressee.name, prompt)
    question = "\n\n".join(part for part in (prompt, _piped(prompt)) if part)
    if not question.strip():
        raise CommandError("there is no question", hint='llamesh chat MODEL "..."', code=Exit.USAGE)
    talk.messages.append({"role": "user", "content": content(question, list(image))})
    _answer(addressee, talk, verbose, json_lines=json_lines)


def _check_paths(model: str, prompt: str) -> None:
    """Refuse a prompt that is only the path of a file, and say that an image in a prompt is sent as text."""
    images = image_paths(prompt)
    word = prompt.strip()
    if path_alone(prompt) or word in images:
        file = shlex.quote(word)
        raise CommandError(
            f"{text(word)} alone is no question: files are not read from the prompt",
            hint=f'llamesh chat {shlex.quote(model)} "..." {"--image" if word in images else "<"} {file}',
            code=Exit.USAGE,
        )
    for path in images:
        note(f"{text(path)} is sent as text; --image {shlex.quote(path)} attaches it")


def _piped(prompt: str) -> str:
    """Read standard input. If there is a prompt, only a pipe or a file is read: a service has neither."""
    if prompt:
        try:
            kind = os.fstat(sys.stdin.fileno()).st_mode
        except (OSError, ValueError, AttributeError):
            return ""
        if not stat.S_ISFIFO(kind) and not stat.S_ISREG(kind):
            return ""
    piped = sys.stdin.read(MAX_PIPED + 1)
    if len(piped) > MAX_PIPED:
        raise CommandError(f"standard input has more than {MAX_PIPED} letters", code=Exit.USAGE)
    return piped


def _answer(
    addressee: Addressee, talk: Conversation, verbose: bool, *, json_lines: bool = False, stoppable: bool = False
) -> str:
    """Ask, print what comes as it comes, and return all of it.

    If it is stoppable, an answer that Ctrl-C or a failure ends is what has come until then.
    """
    request = talk.request()
    if verbose:
        request["stream_options"] = {"include_usage": True}
    shown = _Shown(json_lines=json_lines)
    try:
        if not _sent(addressee, request, shown, look_up=True):
            _sent(addressee, request, shown, look_up=False)
    except (KeyboardInterrupt, CommandError) as error:
        if shown.said or isinstance(error, KeyboardInterrupt):
            shown.end()
        if not stoppable or not shown.said:
            raise
        note(error.render() if isinstance(error, CommandError) else "stopped")
        return shown.said
    shown.end()
    if verbose:
        note(_figures(shown.last, slot_context(addressee.name)))
    return shown.said


def _sent(addressee: Addressee, request: dict[str, Any], shown: _Shown, *, look_up: bool) -> bool:
    """Send a request and show its answer. With `look_up`, False if it is to be sent again, because the addressee has another name."""
    from llamesh.cli import web

    profile = meant()
    address = inference_address(profile)
    path, body = addressee.addressed(request)
    with web.answer(address, "POST", path, profile.token, encoded(body)) as response:
        if response.status >= 400:
            refusal = web.refusal(response)
            if look_up and addressee.resolve_other_name(refusal):
                return False
            raise with_served_names(refusal, address, profile.token, addressee.name)
        for event in _events(response):
            shown.event(event)
    return True


class _Shown:
    """An answer on standard output. In a terminal it is broken between words and cannot steer it, and Markdown is rendered if the terminal
    shows styles; elsewhere it is what the model said."""

    def __init__(self, *, json_lines: bool) -> None:
        self.said = ""
        self.last: dict[str, Any] = {}
        """The event with the figures."""
        self._json = json_lines
        terminal = sys.stdout.isatty() and not json_lines
        self._wrapper = _layout() if terminal else None
        self._reasoning = self._begun = False
        self._dim, self._normal = (DIM, NORMAL) if shows_styles() else ("", "")

    def event(self, event: dict[str, Any]) -> None:
        """Show one part."""
        deltas = [choice.get("delta", {}) for choice in event.get("choices", ())]
        piece = "".join(delta.get("content") or "" for delta in deltas)
        self.said += piece
        if "usage" in event or "timings" in event:
            self.last = event
        if self._json:
            say(json.dumps(event))
            return
        if self._wrapper is None:
            put(piece)
            return
        self._show("".join(delta.get("reasoning_content") or "" for delta in deltas), reasoning=True)
        self._show(piece, reasoning=False)

    def _show(self, piece: str, *, reasoning: bool) -> None:
        assert self._wrapper is not None
        if not piece:
            return
        if reasoning != self._reasoning:
            # Reasoning is dim and as the model wrote it; the answer begins on a line of its own.
            before = self._wrapper.flush() + ("" if reasoning else self._normal) + ("\n" if self._begun else "")
            put(f"{before}{self._dim if reasoning else ''}")
            self._wrapper = Wrapper(_width()) if reasoning else _layout()
            self._reasoning = reasoning
        self._begun = True
        put(self._wrapper.feed(safe(piece)))

    def end(self) -> None:
        """End the last line."""
        if self._json:
            return
        rest = self._wrapper.flush() if self._wrapper else ""
        put(f"{rest}{self._normal if self._reasoning else ''}\n")
        self._reasoning = False


def shows_styles() -> bool:
    """Whether standard output shows bold and dim letters: a terminal that is not dumb, without NO_COLOR (https://no-color.org)."""
    drawn = os.environ.get("TERM", "dumb") != "dumb"
    return sys.stdout.isatty() and drawn and not os.environ.get("NO_COLOR")


def _width() -> int:
    from shutil import get_terminal_size

    return get_terminal_size().columns - 1


def _layout() -> Wrapper | Markdown:
    """Return the wrapper for the lines of an answer in this terminal."""
    if not shows_styles():
        return Wrapper(_width())
    return Markdown(_width(), drawn="utf" in (sys.stdout.encoding or "").lower())


def _numbers(fields: object) -> dict[str, int | float]:
    """The numbers among the fields of an object; a mesh that is not ours may send anything."""
    found = fields.items() if isinstance(fields, dict) else ()
    return {name: value for name, value in found if isinstance(value, int | float)}


def _figures(event: dict[str, Any], context: int) -> str:
    """Tokens, their rate and the context used, as far as the engine says them; of how much, if the context of a slot is known."""
    timings, usage = _numbers(event.get("timings")), _numbers(event.get("usage"))
    count = usage.get("completion_tokens", timings.get("predicted_n", 0))
    parts = [f"{count} tokens"]
    if rate := timings.get("predicted_per_second"):
        parts.append(f"{rate:.1f} tokens/s")
    if total := usage.get("total_tokens"):
        parts.append(f"context used {total} of {context}" if context else f"context used {total} tokens")
    return ", ".join(parts)


def _events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events, until [DONE]. CommandError if the stream ends before, or one reports a failure."""
    from http.client import HTTPException

    ending = "the connection ended before the answer did"
    try:
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            content = line[5:].strip()
            if content == b"[DONE]":
                return
            if not line.endswith(b"\n"):
                break
            event = json.loads(content)
            if error := event.get("error"):
                raise CommandError(str(error.get("message", error) if isinstance(error, dict) else error))
            yield event
    except (OSError, HTTPException, ValueError) as error:
        ending = str(error)
    raise CommandError(
        f"the answer broke off: {ending}", hint="ask again; `llamesh status` shows the servers", code=Exit.UNAVAILABLE
    )
