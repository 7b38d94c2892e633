"""The conversation in a terminal: questions with line editing and history, commands that begin with a slash.

Ctrl-C stops an answer, never the conversation; Ctrl-D and /bye end it. Any other failure is printed, and the conversation goes on. The
received part of an interrupted answer is kept; a question without any answer is forgotten.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from llamesh.cli.chat_settings import DEFAULT, OTHER_WORDS, SETTINGS, SWITCHES, UNCHANGEABLE, restores, switched, typed
from llamesh.cli.conversation import (
    Conversation,
    content,
    encoded,
    images_of,
    is_there,
    keep,
    missing_images,
    path_alone,
)
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import text
from llamesh.cli.printing import note
from llamesh.locations import expanded
from llamesh.nearest import nearest

MAX_QUESTIONS = 1000
"""Questions that the history keeps."""
MAX_LETTERS = 4000
"""Characters of a question that the history keeps."""
ATTACHED = "attach an image by its path: what is this? ./cat.png"
QUOTES = '"""'
COMMANDS = {
    "/help": "what can be typed",
    "/bye": "end the conversation (Ctrl-D)",
    "/clear": "forget what was said",
    "/system [TEXT]": "set the system prompt; alone: remove it",
    "/set [NAME VALUE]": "show the settings, or change one",
    "/show": "model, settings and messages",
    "/save FILE": "write the conversation",
    "/save! FILE": "replace a file by the conversation",
    "/load FILE": "read a conversation",
}
"""The commands and what they do. /help lists them in lines of at most 60 columns."""
_DEFAULT = "the server's default"
Read = Callable[[str], str]
"""Reads a line after a prompt. EOFError at the end, KeyboardInterrupt at Ctrl-C."""
Ask = Callable[[Conversation, bool], str]
"""Sends a conversation, shows the answer and returns it; the flag asks for its figures."""


class Talk:
    """One conversation with a person."""

    def __init__(self, model: str, conversation: Conversation, ask: Ask, read: Read, *, verbose: bool = False) -> None:
        self._model = model
        self._conversation = conversation
        self._ask = ask
        self._read = read
        self._verbose = verbose
        self._files: set[Path] = set()
        """Where the conversation was saved, or read from."""

    def go_on(self) -> None:
        """Talk until the person ends it."""
        while True:
            try:
                question = self._question()
            except EOFError:
                return
            except KeyboardInterrupt:
                note("Ctrl-D or /bye ends the conversation")
                continue
            try:
                if question.startswith("/") and not images_of(question) and not path_alone(question):
                    if not self._command(question):
                        return
                elif question:
                    self._put(question)
            except KeyboardInterrupt:
                note("stopped")
            except BrokenPipeError:
                raise
            except Exception as error:
                note(_failure(error).render())

    def _question(self) -> str:
        """The next question; from three quotation marks to three, it may have several lines."""
        line = self._read("> ").strip()
        if not line.startswith(QUOTES):
            return line
        lines = [line.removeprefix(QUOTES)]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(self._read("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip()

    def _put(self, question: str) -> None:
        if alone := path_alone(question):
            raise CommandError(f"{text(alone)} alone is no question", hint=ATTACHED, code=Exit.USAGE)
        for path in missing_images(question):
            note(f"there is no file {text(path)}: it is sent as text")
        messages = self._conversation.messages
        messages.append({"role": "user", "content": content(question, images_of(question))})
        try:
            said = self._ask(self._conversation, self._verbose)
        except BaseException:
            messages.pop()
            raise
        messages.append({"role": "assistant", "content": said})

    def _command(self, line: str) -> bool:
        """Carry out a command; False if it ends the conversation."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/bye" | "/exit" | "/quit":
                return False
            case "/help" | "/?":
                width = max(map(len, COMMANDS))
                note("\n".join(f"  {command:<{width}}  {about}" for command, about in COMMANDS.items()))
                note('  """ begins and ends a question of several lines')
                note(f"  {ATTACHED}")
            case "/clear":
                self._conversation.messages.clear()
                note("forgotten")
            case "/system":
                self._conversation.system = rest
            case "/set":
                self._set(rest)
            case "/show":
                self._show()
            case "/save" | "/save!":
                self._save(rest, replace=name == "/save!")
            case "/load":
                path = _path(rest)
                self._conversation = Conversation.load(path)
                self._files = {path.absolute()}
                note(f"{len(self._conversation.messages)} messages")
            case _:
                meant = nearest(name, [command.split()[0] for command in COMMANDS])
                hint = f"did you mean {meant}?" if meant else "/help lists the commands"
                raise CommandError(f"there is no command {text(name)}", hint=hint, code=Exit.USAGE)
        return True

    def _save(self, word: str, *, replace: bool) -> None:
        """Write the conversation. CommandError if another file would be lost: only files of this conversation are replaced unasked."""
        path = _path(word)
        if not replace and path.absolute() not in self._files and is_there(path):
            raise CommandError(f"{text(word)} exists already", hint=f"/save! {text(word)} replaces it", code=Exit.USAGE)
        self._conversation.save(path)
        self._files.add(path.absolute())
        note(f"saved in {word}")

    def _set(self, rest: str) -> None:
        name, _, value = rest.removeprefix("parameter ").strip().partition(" ")
        name, value = OTHER_WORDS.get(name, name), value.strip()
        if name in {"", "parameter"}:
            self._show_settings()
        elif name in SWITCHES and not value:
            self._conversation.set(*SWITCHES[name])
        elif name == "verbose":
            self._verbose = value != DEFAULT and switched(name, value or "on")
        elif name in {"quiet", "noverbose"} and not value:
            self._verbose = False
        elif restores(name, value) or (name.startswith("no") and restores(name[2:], value or DEFAULT)):
            self._conversation.settings.pop(name if name in SETTINGS else name[2:], None)
        elif (always := UNCHANGEABLE.get(name.removeprefix("no"))) and not value:
            if name not in UNCHANGEABLE:
                raise CommandError(f"there is no {name}: {always}", code=Exit.USAGE)
            note(always)
        elif name == "system":
            self._conversation.system = value.strip('"')
        elif name == "num_ctx":
            hint = f"llamesh set {text(self._model)} --ctx-size {text(value or 'TOKENS')}"
            raise CommandError("the context belongs to the server, not to the conversation", hint=hint, code=Exit.USAGE)
        elif name in SETTINGS and not value:
            note(f"{name}  {self._value(name)}")
        else:
            self._conversation.set(name, value)

    def _show_settings(self) -> None:
        """Show what can be set, with the present values."""
        width = max(map(len, SETTINGS))
        for name in SETTINGS:
            note(f"  {name:<{width}}  {self._value(name)}")
        note(f"  {'verbose':<{width}}  {'on' if self._verbose else 'off'}")
        note(text(f"  {'system':<{width}}  {self._conversation.system or 'none'}"))
        note(f"/set NAME VALUE changes one, /set NAME {DEFAULT} gives it back to the server")

    def _value(self, name: str) -> str:
        found = self._conversation.settings.get(name)
        return _DEFAULT if found is None else text(typed(found))

    def _show(self) -> None:
        talk = self._conversation
        note(text(f"model     {self._model}"))
        note(text(f"system    {talk.system}"))
        note(text(f"settings  {' '.join(f'{name}={typed(value)}' for name, value in talk.settings.items())}"))
        note(f"messages  {len(talk.messages)}")


def _failure(error: Exception) -> CommandError:
    """Return the message for a failure. Raises the error itself if the log level is debug, as the command does."""
    # Imported late: it brings the client, which a conversation without failures does not need.
    from llamesh.cli.refusals import command_error

    if os.environ.get("LLAMESH_LOG_LEVEL") == "debug" and not isinstance(error, CommandError):
        raise error
    return command_error(error)


def _path(word: str) -> Path:
    word = word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" else word
    if not word:
        raise CommandError("which file?", hint="/save FILE, /load FILE", code=Exit.USAGE)
    return expanded(word, "FILE")


def reader() -> Read:
    """Reads lines with editing and history in a terminal that can be drawn on; elsewhere line by line."""
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        try:
            return _editor()
        except ImportError:
            note("without the package prompt_toolkit there is no line editing")
    return _plain


def _editor() -> Read:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    lines = _history()
    session: PromptSession[str] = PromptSession(history=InMemoryHistory(lines))

    def read(prompt: str) -> str:
        line = str(session.prompt(prompt))
        if line.strip() and line[:MAX_LETTERS] not in lines[-1:]:
            lines.append(line[:MAX_LETTERS])
            _keep(lines)
        return line

    return read


def _plain(prompt: str) -> str:
    sys.stderr.write(prompt)
    sys.stderr.flush()
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        # The terminal has written ^C behind the prompt.
        sys.stderr.write("\n")
        raise
    if not line:
        sys.stderr.write("\n")
        raise EOFError
    return line


def history_file() -> Path:
    """Return the path of the history, a file of this user only."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else expanded("~/.local/state", "XDG_STATE_HOME")) / "llamesh" / "chat_history.json"


def _history() -> list[str]:
    """The questions of earlier conversations; none if the file cannot be read."""
    try:
        found = json.loads(history_file().read_text(encoding="utf-8"))
        return [str(item)[:MAX_LETTERS] for item in found][-MAX_QUESTIONS:] if isinstance(found, list) else []
    except (OSError, ValueError, RecursionError):
        return []


def _keep(lines: list[str]) -> None:
    """Write the history. A disk that is full or read-only does not end a conversation."""
    del lines[:-MAX_QUESTIONS]
    try:
        # A link to the file stays, also one to /dev/null, with which a person keeps no history.
        file = Path(os.path.realpath(history_file()))
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        keep(file, encoded(lines))
    except (OSError, ValueError, CommandError):
        return
