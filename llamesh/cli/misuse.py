"""Translates the refusals of the parser of the command line: what was typed, and the form of the command that works.

Invariant: no word of the parser about its own parts (tokens, parameters, types of Python) reaches a person.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from typing import Any

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from llamesh.cli.failure import CommandError, Exit
from llamesh.nearest import nearest

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
_FLAGS = "flags"
"""The argument that takes what stands after --."""
_OF_OLLAMA = {
    "create": "`llamesh pull FILE --name NAME` takes a file, `llamesh quantize MODEL` makes variants, `llamesh alias MODEL NAME` names it",
    "cp": "`llamesh alias MODEL NAME` gives a model a further name; nothing is copied",
    "push": "models are not uploaded; `llamesh api GET /models` names their sources, from which another mesh can `llamesh pull` them",
    "signin": "there is no account at a company; `llamesh login` gets a token of the mesh",
    "signout": "tokens end by themselves; `llamesh users password NAME` ends all of a user's at once",
    "launch": "`llamesh env` prints the addresses and a key as variables, for any program that speaks OpenAI's or Anthropic's API",
}
"""Commands of Ollama that have no equal here, and what to do."""
_REMOVALS = (
    "`llamesh rm MODEL` removes a model, `llamesh stop SERVER` a server, `llamesh delete -f FILE` what a file declares"
)
_FETCHES = "`llamesh pull SOURCE` fetches a model, or takes a file of this machine; `llamesh search QUERY` finds one"
_OF_OTHERS = {
    "remove": _REMOVALS,
    "kill": "`llamesh stop SERVER` stops a server, `llamesh down` the mesh of this machine",
    "import": _FETCHES,
    "download": _FETCHES,
    "install": _FETCHES,
    "update": "`llamesh set SERVER` changes a server, `llamesh apply -f FILE` what a file declares; "
    "`llamesh pull SOURCE --update` fetches a model again",
    "get": "`llamesh models` lists the models, `llamesh status` the servers; `llamesh describe NAME` shows one",
}
"""Words of other tools for which there are several commands here."""
_FILES = (".yaml", ".yml", ".json", "-")
"""How the name of a manifest ends; - is standard input."""
_SHOWN = "`llamesh describe NAME -o json` shows what a model's file says and what a server was given"
_SLEEPS = "--idle-sleep is the time without a request after which the server sleeps: --idle-sleep 5m"
_THINKS = "in a conversation, /set think and /set nothink switch it"
_OPTIONS_OF_OTHERS = {
    **{(command, name): _SLEEPS for command in ("run", "serve") for name in ("--keepalive", "--keep-alive")},
    ("run", "--think"): _THINKS,
    ("run", "--hidethinking"): _THINKS,
    ("run", "--format"): "in a conversation, /set format json",
    ("run", "--nowordwrap"): "in a terminal words always stay whole at the edge",
    ("run", "--insecure"): "only https addresses and files are fetched",
    ("pull", "--insecure"): "only https addresses and files are fetched",
    ("run", "--num-ctx"): "--ctx-size is the context in tokens: --ctx-size 8192",
    ("serve", "--num-ctx"): "--ctx-size is the context in tokens: --ctx-size 8192",
    **{
        ("describe", name): _SHOWN
        for name in ("--modelfile", "--parameters", "--template", "--license", "--system", "--verbose", "-v")
    },
}
"""Options of Ollama's commands and of llama.cpp's programs, and what to do."""
_SERVE = ("serve",)
_QUANTIZE = ("quantize",)
_DELETE = ("delete",)
_TLS_INIT = ("tls", "init")
_MIN_LIKENESS = 0.75
"""Minimum share of equal letters of an option that was probably meant: options are short, and a distant one misleads."""
_WITH_PARAMETERS = {("serve",), ("fit",)}
"""Commands that may be given options of llama-server."""


def misuse(error: CycloptsError) -> CommandError:
    """Return the failure of the command for a refusal of the parser."""
    command = " ".join(["llamesh", *(error.command_chain or ())])
    cause, hint = str(error).strip(), f"{command} --help"
    if isinstance(error, UnusedCliTokensError):
        words = shlex.join(error.unused_tokens or ())
        cause, hint = f"{command} takes no further argument: {words}", _usage(command, error.target)
        if error.command_chain == _QUANTIZE:
            hint = "types have commas between them: --types Q4_K_M,Q8_0"
        if len(error.command_chain or ()) == 1 and error.unused_tokens:
            cause, hint = _no_subcommand(command, error.unused_tokens[0]) or (cause, hint)
        if error.command_chain == _TLS_INIT:
            hint = " ".join([command, *(f"--name {shlex.quote(word)}" for word in error.unused_tokens or ())])
    elif isinstance(error, UnknownCommandError) and not error.command_chain and error.unused_tokens:
        word = error.unused_tokens[0]
        if other := _OF_OLLAMA.get(word) or _OF_OTHERS.get(word):
            cause, hint = f"there is no command {word}", other
    elif isinstance(error, MissingArgumentError) and error.argument is not None:
        cause, hint = _missing(error, command)
    elif isinstance(error, UnknownOptionError):
        cause, hint = _unknown(error, cause, hint)
        if error.token.keyword is None and error.token.value == "-":
            words = f"{command} neither reads standard input nor writes to standard output by the name -"
            cause, hint = words, _usage(command, error.target)
    elif isinstance(error, CoercionError) and error.msg is None and error.token is not None:
        kind = getattr(error.target_type, "__name__", "")
        if kind in _KINDS:
            name = error.token.keyword or (error.argument.name.lstrip("-").upper() if error.argument else "")
            cause = f"{name}: {error.token.value!r} is not {_KINDS[kind]}"
    return CommandError(cause, hint=hint, code=Exit.USAGE)


def _no_subcommand(command: str, word: str) -> tuple[str, str] | None:
    """Return the cause and the hint for a word after a command that has subcommands; None if it has none."""
    from llamesh.cli.options import subcommands

    known = subcommands(command.rpartition(" ")[2])
    if not known:
        return None
    meant = nearest(word, known)
    cause = f"{command} has no subcommand {shlex.quote(word)}"
    listed = f"{command} has {', '.join(known)}; `{command} --help` explains them"
    return (f"{cause}. Did you mean {meant}?", f"{command} {meant} --help") if meant else (cause, listed)


def _missing(error: MissingArgumentError, command: str) -> tuple[str, str]:
    assert error.argument is not None
    parameter = error.argument.field_info
    typed = error.keyword or next((token.keyword for token in error.argument.tokens if token.keyword), None)
    if typed:
        return f"{typed} needs a value", f"{_usage(command, error.target)} {typed} VALUE"
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        usage = _usage(command, error.target)
        if error.command_chain == _SERVE:
            usage += "; `llamesh up` starts the mesh"  # `ollama serve` starts Ollama.
        return f"{command}: {_shown(parameter.name)} is missing", usage
    names = sorted(error.argument.names, key=len)
    # A word that no option takes is most likely the missing value.
    given = (error.root_input_tokens or [])[len(error.command_chain or ()) :]
    value = shlex.quote(given[0]) if given and not given[0].startswith("-") else _shown(parameter.name)
    if error.command_chain == _DELETE and given and not given[0].endswith(_FILES):
        return f"{command}: {' or '.join(reversed(names))} is missing", _REMOVALS
    return f"{command}: {' or '.join(reversed(names))} is missing", f"{command} {names[0]} {value}"


def _unknown(error: UnknownOptionError, cause: str, hint: str) -> tuple[str, str]:
    written = (error.token.keyword or error.token.value).partition("=")[0]
    # What the parser guesses has no place beside a better hint.
    plain = f"Unknown option: {written}."
    name = written.replace("_", "-") if written.startswith("--") else written
    if other := _OPTIONS_OF_OTHERS.get(((error.command_chain or ("",))[0], name)):
        return plain, other
    if error.command_chain in _WITH_PARAMETERS:
        from llamesh.runtime_parameters import refused_options

        if reason := refused_options().get(name):
            return reason, hint
    elif written == "--json" and error.target and "output" in inspect.signature(error.target).parameters:
        return plain, f"{hint.removesuffix(' --help')} -o json"
    if written.startswith("--"):
        known = [name for item in error.argument_collection or () if item.parse for name in item.names]
        names = {name.removeprefix("--"): name for name in known if name.startswith("--")}
        meant = names.get(nearest(written.lstrip("-"), names, _MIN_LIKENESS))
        cause = f"{plain} Did you mean {meant}?" if meant else plain
    return cause, hint


def _usage(command: str, target: Callable[..., Any] | None) -> str:
    """The command with its arguments: NAME, [NAME] if it may be left out, NAME... if there may be several."""
    words = [command]
    for item in inspect.signature(target).parameters.values() if target else ():
        if item.kind is inspect.Parameter.VAR_POSITIONAL:
            words.append("[-- FLAGS...]" if item.name == _FLAGS else f"[{_shown(item.name)}...]")
        elif item.kind is not inspect.Parameter.KEYWORD_ONLY:
            shown = _shown(item.name)
            words.append(shown if item.default is inspect.Parameter.empty else f"[{shown}]")
    return " ".join(words)


def _shown(name: str) -> str:
    return name.strip("_").replace("_", "-").upper()
