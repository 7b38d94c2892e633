"""Reads the settings of this process: environment first, then the file, then the defaults in `config.py`.

The file is `config.env` in LLAMESH_HOME (lines NAME=value), or the one that LLAMESH_CONFIG names. A line that is not a setting is an error;
a variable with the prefix LLAMESH_ that is not a setting is a warning. `python -m llamesh.kit.config_loading` prints the settings in force
as JSON. The supervisor, which may not import the kit, reads them there.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

from dotenv import dotenv_values
from pydantic import AliasChoices, ValidationError
from pydantic.fields import FieldInfo

from llamesh.kit.config import Settings
from llamesh.kit.config_sources import unknown_variables, wrong_lines
from llamesh.kit.config_words import refusal
from llamesh.locations import home_directory
from llamesh.regular_files import NotRegularError, open_regular
from llamesh.text_files import NotTextError, read_text


class WrongSettingsError(Exception):
    """Settings that cannot be used. `problems`: one sentence each, with the setting or the line, and without secrets."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load_settings() -> Settings:
    """Read the settings of this process; WrongSettingsError if a value or a line of the file is invalid."""
    named = os.environ.get("LLAMESH_CONFIG")
    file = Path(named) if named else home_directory(os.environ) / "config.env"
    if named:
        _check_named(file)
    wrong = wrong_lines(file, _names())
    try:
        settings = Settings(_env_file=None if wrong else file)  # type: ignore[call-arg]
    except ValidationError as error:
        wrong += problems(error)
    if wrong:
        raise WrongSettingsError(wrong)
    return settings


def _check_named(file: Path) -> None:
    """Raise WrongSettingsError unless LLAMESH_CONFIG names a file that can be read."""
    try:
        open_regular(file).close()
    except (FileNotFoundError, NotADirectoryError):
        problem = f"there is no file {file}"
    except OSError as error:
        problem = f"{file} cannot be read: {error.strerror}"
    except NotRegularError as error:
        problem = str(error)
    else:
        return
    raise WrongSettingsError([f"setting LLAMESH_CONFIG: {problem}"])


def readable_settings() -> tuple[Settings, list[str]]:
    """Read the settings, with defaults for the wrong ones, and return the problems too. For `llamesh doctor` only.

    It removes wrong variables from the environment of this process.
    """
    try:
        return load_settings(), []
    except WrongSettingsError as error:
        wrong = error.problems
    named = os.environ.get("LLAMESH_CONFIG")
    file = Path(named) if named else home_directory(os.environ) / "config.env"
    try:
        lines = dotenv_values(stream=io.StringIO(read_text(file), newline=None)) if file.is_file() else {}
    except (OSError, NotTextError):
        lines = {}
    for name, value in lines.items():
        if value is not None and name.upper() in _names() and not os.environ.get(name.upper()):
            os.environ[name.upper()] = value
    for _ in Settings.model_fields:
        try:
            return Settings(_env_file=None), wrong  # type: ignore[call-arg]
        except ValidationError as error:
            wrong += [words for words in problems(error) if words not in wrong]
            for item in error.errors():
                os.environ.pop(str(item["loc"][0]).upper(), None)
                os.environ.pop(str(item["loc"][0]).lower(), None)
    return Settings(_env_file=None), wrong  # type: ignore[call-arg]


def warnings() -> list[str]:
    """Return one sentence for each variable of the environment that looks like a setting but is not."""
    return unknown_variables(os.environ, _names())


def problems(error: ValidationError) -> list[str]:
    """Describe the problems of the settings, one line each, without secrets."""
    by_name = {name: field for field in Settings.model_fields.values() for name in _names_of(field)}
    return [refusal(str(item["loc"][0]).upper(), by_name[str(item["loc"][0]).upper()], item) for item in error.errors()]


def _names() -> set[str]:
    """Return every name that a setting can have, in capitals."""
    own = {f"{Settings.model_config['env_prefix']}{name}".upper() for name in Settings.model_fields}
    return own.union(*(_names_of(field) for field in Settings.model_fields.values()))


def _names_of(field: FieldInfo) -> set[str]:
    alias = field.validation_alias
    assert isinstance(alias, AliasChoices), "each setting is made by _named"
    return {str(choice).upper() for choice in alias.choices}


def main() -> int:
    """Print the settings in force without secrets, the run directory and warnings; return 2 if a setting is wrong.

    With --tolerant, defaults replace wrong settings, whose problems are printed as `wrong`.
    """
    wrong: list[str] = []
    try:
        if sys.argv[1:] == ["--tolerant"]:
            settings, wrong = readable_settings()
        else:
            settings = load_settings()
    except WrongSettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    has_secret = settings.jwt_secret is not None
    more = {"run_dir": str(settings.run_dir), "warnings": warnings(), "wrong": wrong, "has_secret": has_secret}
    shown = settings.model_dump(mode="json") | more
    sys.stdout.write(json.dumps(shown) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
