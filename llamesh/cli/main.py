"""Entry point of `llamesh`: imports only the module of the given command, and turns every failure into a message and an exit code.

Exit codes: see `llamesh.cli.failure.Exit`. Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from llamesh import __version__
from llamesh.cli.failure import CommandError, Exit, unforeseen
from llamesh.cli.printing import note, say
from llamesh.shutdown import unwound

if TYPE_CHECKING:
    from cyclopts import App

COMMANDS = {
    "Mesh on this machine": {
        "up": ("llamesh.cli.up:up", "Start the whole mesh here; stay up until Ctrl-C."),
        "down": ("llamesh.cli.up:down", "End the mesh that runs here."),
        "doctor": ("llamesh.cli.diagnosis:doctor", "Check this machine and the mesh; name each fix."),
        "backup": ("llamesh.cli.backup:backup", "Write the mesh of this machine to a file."),
        "restore": ("llamesh.cli.backup:restore", "Make a mesh of a backup."),
        "tls": ("llamesh.cli.tls:app", "Certificates for the ports of a mesh."),
        "certificates": ("llamesh.cli.certificates:certificates", "Certificates of members that use TCP."),
        "logs": ("llamesh.cli.logs:logs", "Log lines of a server's engine or of a component."),
    },
    "Models and servers": {
        "run": ("llamesh.cli.run:run", "Fetch and serve a model if needed, and talk to it."),
        "models": ("llamesh.cli.models:models", "Models that can be served."),
        "alias": ("llamesh.cli.aliases:alias", "Give a model further names."),
        "search": ("llamesh.cli.search:search", "Find models of the Hugging Face Hub."),
        "pull": ("llamesh.cli.models:pull", "Fetch a model."),
        "downloads": ("llamesh.cli.downloads:app", "Models on their way."),
        "rm": ("llamesh.cli.models:rm", "Remove models."),
        "df": ("llamesh.cli.disk:df", "Bytes of the models, which could be freed, and free space."),
        "quantize": ("llamesh.cli.quantize:quantize", "Make quantised variants of a model."),
        "jobs": ("llamesh.cli.quant_jobs:app", "Jobs that make variants."),
        "variants": ("llamesh.cli.quant_variants:app", "Variants that jobs have published."),
        "fit": ("llamesh.cli.serve:fit", "Would it be served, and what would it take? Starts nothing."),
        "serve": ("llamesh.cli.serve:serve", "Serve a model."),
        "status": ("llamesh.cli.servers:status", "Servers and their state."),
        "describe": ("llamesh.cli.describe:describe", "Everything about one server or model."),
        "wait": ("llamesh.cli.servers:wait", "Wait until a server is ready."),
        "scale": ("llamesh.cli.servers:scale", "Change the number of replicas."),
        "set": ("llamesh.cli.change:change", "Change a server: parameters, sleep, name."),
        "sleep": ("llamesh.cli.servers:sleep", "Stop the engines until the next request."),
        "wake": ("llamesh.cli.servers:wake", "Start the engines of a sleeping server."),
        "stop": ("llamesh.cli.servers:stop", "Stop servers and forget them."),
        "apply": ("llamesh.cli.apply:apply", "Create and change what files declare."),
        "diff": ("llamesh.cli.apply:diff", "How the mesh differs from files."),
        "delete": ("llamesh.cli.apply:delete", "Remove what files declare."),
        "schema": ("llamesh.cli.apply:schema", "The JSON schema of a manifest."),
        "chat": ("llamesh.cli.chat:chat", "Talk to a model."),
    },
    "Access and usage": {
        "login": ("llamesh.cli.account:login", "Get a token and keep it."),
        "context": ("llamesh.cli.contexts:app", "The meshes that you work with."),
        "keys": ("llamesh.cli.keys:app", "Keys for programs."),
        "users": ("llamesh.cli.users:app", "Who can log in."),
        "contracts": ("llamesh.cli.contracts:app", "What someone may use."),
        "usage": ("llamesh.cli.account:usage", "Requests and tokens by day, subject and model."),
        "why": ("llamesh.cli.account:why", "Why something was allowed or refused."),
    },
    "More": {
        "api": ("llamesh.cli.api:api", "Any REST call, with your token."),
        "env": ("llamesh.cli.env:env", "The mesh as variables: addresses and a key."),
        "completion": ("llamesh.cli.shell:completion", "Completion for bash, zsh or fish."),
        "version": ("llamesh.cli.account:version", "Versions of the command and the mesh."),
    },
}

ALIASES = {"ps": "status", "list": "models", "ls": "models", "show": "describe", "start": "serve"}
"""Words of other tools for commands of this one. Help does not list them."""


def main() -> None:
    """The program."""
    if sys.argv[1:2] != ["up"] and os.environ.get("LLAMESH_LOG_LEVEL") != "debug":
        # gRPC, which reads this when it is imported, writes lines of its own about a failure that the command reports.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(unwound(lambda: run(sys.argv[1:])))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that is not UTF-8 gets escapes for unsupported characters instead of a failure.
        sys.stdout.reconfigure(errors="backslashreplace")
    if arguments in (["--version"], ["-V"], ["-v"]):
        say(f"llamesh {__version__}")
        return Exit.OK
    if arguments[:1] == ["--complete"]:
        from llamesh.cli.completion import ask_mesh, candidates

        say("\n".join(candidates(arguments[1:], ask_mesh)))
        return Exit.OK
    try:
        result = _dispatch(arguments)
        sys.stdout.flush()
    except CommandError as error:
        note(error.render())
        return error.code
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            # The terminal has written ^C: the shell's prompt begins on a line of its own.
            note("")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`) has closed the pipe; without this, Python reports it again when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except Exception as error:
        if os.environ.get("LLAMESH_LOG_LEVEL") == "debug":
            raise
        failure = unforeseen(error)
        note(failure.render())
        return failure.code
    return result


def application() -> App:
    """Register the commands with cyclopts without importing their modules."""
    from cyclopts import App, Group, Parameter

    from llamesh.cli.help_formatter import HelpFormatter

    app = App(
        name="llamesh",
        help="Serve llama.cpp models on your own hardware.",
        version=__version__,
        # Markdown would take the asterisk of `infer:*` for emphasis.
        help_format="plaintext",
        help_formatter=HelpFormatter(),
        # No option --empty-NAME: it would say the same as leaving the option out.
        default_parameter=Parameter(show_default=_shown_default, negative_iterable=()),
        result_action="return_value",
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
        print_error=False,
        help_on_error=False,
    )
    for order, (title, commands) in enumerate(COMMANDS.items()):
        group = Group(title, sort_key=order)
        for name, (path, text) in commands.items():
            app.command(path, name=name, help=text, group=group)
    for flag in ("--help", "--version"):
        app[flag].group = (group,)
    return app


def _shown_default(value: object) -> str | None:
    """Return a default for help; None if there is no default to show."""
    return str(value) if value else None


def _dispatch(arguments: list[str]) -> int:
    from cyclopts import CycloptsError

    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if arguments and arguments[0] in ALIASES:
        arguments = [ALIASES[arguments[0]], *arguments[1:]]
    try:
        result = application()(arguments)
    except CycloptsError as error:
        from llamesh.cli.misuse import misuse

        raise misuse(error) from None
    except Exception as error:
        # Translate errors of the client. If it is not loaded, the error is another one, so the client is not imported for this.
        translated = _refusal(error)
        if translated is not None:
            raise translated from error
        raise
    return int(result or 0)


def _refusal(error: Exception) -> CommandError | None:
    if "llamesh.client.errors" not in sys.modules:
        return None
    from llamesh.cli.refusals import translate

    return translate(error)


if __name__ == "__main__":
    main()
