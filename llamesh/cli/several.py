"""Applies a command to several names, in order. Invariant: a name that fails leaves no other undone, unless no other can succeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llamesh.cli.failure import CommandError, Exit, unforeseen
from llamesh.cli.printing import note
from llamesh.cli.refusals import translate

_OF_ALL = {Exit.UNAVAILABLE, Exit.NOT_SIGNED_IN}
"""Failures that are not of the name: a further name would fail alike."""


def for_each(names: Sequence[str], act: Callable[[str], None]) -> Exit:
    """Act on each name once, say each failure, and at the end how many failed. Return the code of the failures; FAILED if they differ."""
    names = list(dict.fromkeys(names))
    failures: list[CommandError] = []
    for index, name in enumerate(names):
        try:
            act(name)
        except Exception as error:
            failure = _failure(error)
            if failure is None:
                raise
            if len(names) == 1:
                raise failure from error
            if failure.code in _OF_ALL:
                rest = " ".join(names[index:])
                raise CommandError(
                    failure.cause, parts=[*failure.parts, f"not done: {rest}"], hint=failure.hint, code=failure.code
                ) from error
            note(failure.render())
            failures.append(failure)
    if not failures:
        return Exit.OK
    note(f"{len(failures)} of {len(names)} failed")
    codes = {failure.code for failure in failures}
    return codes.pop() if len(codes) == 1 else Exit.FAILED


def names_or_all(command: str, names: Sequence[str], option: str, *, every: bool) -> None:
    """CommandError unless either names are given or the option that stands for all of them, `every`."""
    if bool(names) == every:
        cause = f"{command} takes no MODEL with {option}" if every else f"{command}: MODEL is missing"
        raise CommandError(cause, hint=f"{command} {option if every else 'MODEL [MODELS...]'}", code=Exit.USAGE)


def _failure(error: Exception) -> CommandError | None:
    """Return the failure of a name; None if the error is another one. A name that cannot be sent, such as one that is no UTF-8, fails."""
    if isinstance(error, CommandError):
        return error
    return translate(error) or (unforeseen(error) if isinstance(error, ValueError) else None)
