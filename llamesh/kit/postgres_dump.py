"""Dumps the tables of PostgreSQL and restores them, with PostgreSQL's own pg_dump and pg_restore.

`llamesh backup` and `llamesh restore`, which may not import the kit, run `python -m llamesh.kit.postgres_dump dump|restore|commands FILE`
and read the JSON object that it prints.
Invariant: the password is never an argument of a program, because all users of a machine see arguments. A restore is one transaction, and
only onto a database without tables of a mesh.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from llamesh.kit.config_loading import WrongSettingsError, load_settings
from llamesh.kit.postgres import read_address

SCHEMAS = ("gateway", "contract", "download", "controller", "quant")
"""The schemas: one for each member that has tables (tests/unit/test_every_table_is_backed_up.py)."""
_PORTABLE = ("--no-owner", "--no-privileges")
"""Options that make a dump independent of the user: another database may have another user."""
_DUMP = (
    "--format=custom",
    *_PORTABLE,
    *(f"--schema={name}" for name in SCHEMAS),
    # A lease belongs to a running process, so a restore leaves it out.
    "--exclude-table-data=*.lease",
)
_RESTORE = ("--single-transaction", "--exit-on-error", *_PORTABLE)
_SECRETS = ("password", "sslpassword")


@dataclass(frozen=True, slots=True)
class DumpReport:
    """Result of a dump or a restore."""

    postgres: bool
    """False if the tables are SQLite files below LLAMESH_HOME, so that there is nothing to dump."""
    done: bool = False
    by_hand: bool = False
    """The program is missing, or would expose a secret as an argument. A person must run `commands`."""
    problem: str = ""
    fix: str = ""
    commands: list[str] = field(default_factory=list)
    """Commands for a person: the dump, then the restore. They ask for the password."""


@dataclass(frozen=True, slots=True)
class Connection:
    """The address and the passwords of the database for PostgreSQL's programs."""

    url: str
    """Address without passwords."""
    password: str
    """Password of the user; empty if there is none."""
    key_password: str
    """Password of the key of the client's certificate. The programs take it only as an argument."""

    @classmethod
    def read(cls, url: str) -> Connection:
        """Read DATABASE_URL. Raises the ValueError of `read_address`."""
        parts = urlsplit(read_address(url).dsn)
        credentials, at, hosts = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        given = dict(parse_qsl(parts.query, keep_blank_values=True))
        rest = {name: value for name, value in given.items() if name not in _SECRETS}
        shown = f"postgresql://{user}{at}{hosts}{parts.path}" + (f"?{urlencode(rest, quote_via=quote)}" if rest else "")
        return cls(shown, unquote(password) or given.get("password", ""), given.get("sslpassword", ""))

    def arguments(self, action: str, file: str) -> list[str]:
        """Return the program and its arguments for "dump" or "restore"."""
        if action == "dump":
            return ["pg_dump", *_DUMP, f"--dbname={self.url}", f"--file={file}"]
        return ["pg_restore", *_RESTORE, f"--dbname={self.url}", file]


def run(action: str, file: str, url: str, environment: Mapping[str, str]) -> DumpReport:
    """Dump to a file, restore from it, or only return the commands ("commands")."""
    connection = Connection.read(url)
    commands = [shlex.join(connection.arguments(each, "llamesh.dump")) for each in ("dump", "restore")]
    if action == "commands":
        return DumpReport(postgres=True, commands=commands)
    program, *arguments = connection.arguments(action, file)
    found = shutil.which(program, path=environment.get("PATH"))
    if found is None or connection.key_password:
        why = f"{program} is not installed" if found is None else f"{program} cannot be given sslpassword in secret"
        fix = "install the client programs of PostgreSQL" if found is None else f"restore it yourself: {commands[1]}"
        return DumpReport(postgres=True, by_hand=True, problem=why, fix=fix, commands=commands)
    secret = {"PGPASSWORD": connection.password} if connection.password else {}
    ended = subprocess.run(
        # With a wrong password the program fails at once instead of asking in a terminal.
        [found, "--no-password", *arguments],
        env={**environment, **secret},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode == 0:
        return DumpReport(postgres=True, done=True)
    return DumpReport(postgres=True, problem=_problem(program, ended.stderr), fix=_fix(ended.stderr), commands=commands)


def _problem(program: str, output: str) -> str:
    lines = [line.removeprefix(f"{program}: ").removeprefix("error: ") for line in output.strip().splitlines()]
    return f"{program}: {'; '.join(lines[:3])}" if lines else f"{program} failed"


def _fix(output: str) -> str:
    if "already exists" in output:
        return "set DATABASE_URL to an empty database: one that has tables of a mesh is left as it is"
    if "version" in output or "unrecognized configuration parameter" in output:
        return "install the client programs of PostgreSQL in the version of the server, and put them first on PATH"
    return "see `llamesh doctor`"


def main(arguments: Sequence[str]) -> int:
    """Print a report and return the exit code: 2 if a setting is wrong, else 0."""
    action, file = arguments
    try:
        settings = load_settings()
    except WrongSettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    report = run(action, file, url, os.environ) if url else DumpReport(postgres=False)
    sys.stdout.write(json.dumps(asdict(report)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
