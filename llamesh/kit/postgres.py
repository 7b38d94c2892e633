"""Reads DATABASE_URL and connects to PostgreSQL with a deadline.

asyncpg reads the address as libpq does (several hosts, TLS, socket directories) and silently sends unknown parameters to the server.
Invariant: an unknown parameter is an error here, so that a misspelt `sslmode` never means a connection without TLS.
"""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

SCHEME = re.compile(r"postgres(ql)?(\+\w+)?://")

PARAMETERS = frozenset(
    {
        "host",
        "port",
        "user",
        "password",
        "passfile",
        "dbname",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslcrl",
        "sslpassword",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "target_session_attrs",
        "connect_timeout",
        "application_name",
        "options",
    }
)
"""Parameters of libpq that DATABASE_URL may contain."""

FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")
"""Parameters whose values are files."""

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

LOCK_SHARE, STATEMENT_SHARE = 0.6, 0.8
"""Shares of the deadline after which the server cancels a lock wait or a statement, so that its reason arrives before the deadline."""
IDLE_SHARE = 2.0
"""Share of the deadline after which the server ends a connection that does nothing in a transaction. A process that lives has ended the
transaction by then; one that is frozen would hold its locks for ever."""


class PostgresRefusedError(Exception):
    """The server refuses the connection, or the address is wrong: a retry cannot help. The message names the correction."""


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """The content of DATABASE_URL."""

    dsn: str
    """Address with the password; never shown."""
    place: str
    """Hosts and ports, for messages."""
    named: bool
    """Whether the address sets its own application_name."""
    connect_timeout: float | None
    """Timeout in seconds; None if not set."""
    files: tuple[tuple[str, str], ...]
    """Parameters that name files, with these files."""

    async def connect(self, schema: str, seconds: float, command_seconds: float | None) -> Any:
        """Connect within `seconds`. `command_seconds` is the longest that any later command may take; None: without end.

        That limit also ends what SQLAlchemy and asyncpg send by themselves after a deadline: a rollback, the cancellation of a statement.
        On a server that is frozen both would otherwise wait for its answer for ever.

        Raises:
            PostgresRefusedError: a retry cannot help.
            OSError, TimeoutError, asyncpg.PostgresError: the server does not answer now.
        """
        import asyncpg

        for name, file in self.files:
            if not os.access(file, os.R_OK):
                raise PostgresRefusedError(f"{name} in DATABASE_URL names {file}, which cannot be read")
        settings = {
            "search_path": schema,
            "lock_timeout": str(int(seconds * LOCK_SHARE * 1000)),
            "statement_timeout": str(int(seconds * STATEMENT_SHARE * 1000)),
            "idle_in_transaction_session_timeout": str(int(seconds * IDLE_SHARE * 1000)),
        }
        if not self.named:
            settings["application_name"] = f"llamesh {schema}"
        try:
            return await asyncpg.connect(
                self.dsn,
                timeout=min(seconds, self.connect_timeout or seconds),
                command_timeout=command_seconds,
                server_settings=settings,
            )
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
            raise PostgresRefusedError(f"{error}: correct user and password in DATABASE_URL") from error
        except asyncpg.InvalidCatalogNameError as error:
            raise PostgresRefusedError(f"{error}: create it (`createdb`), or correct DATABASE_URL") from error
        except (asyncpg.CantChangeRuntimeParamError, asyncpg.UndefinedObjectError) as error:
            raise PostgresRefusedError(f"{error}: correct the parameters of DATABASE_URL") from error
        except asyncpg.ClientConfigurationError as error:
            raise PostgresRefusedError(f"{error}: correct the parameters of DATABASE_URL") from error
        except ssl.SSLCertVerificationError as error:
            raise PostgresRefusedError(
                f"its certificate is refused ({error.verify_message}): correct sslrootcert or sslmode in DATABASE_URL"
            ) from error
        except ConnectionError as error:
            if "rejected SSL upgrade" in str(error):
                raise PostgresRefusedError(
                    "it does not speak TLS, which sslmode requires: set up TLS on the server, or choose another sslmode in DATABASE_URL"
                ) from error
            raise


def read_address(url: str) -> PostgresAddress:
    """Read DATABASE_URL; ValueError names an unknown parameter and never shows the password."""
    if not SCHEME.match(url):
        raise ValueError("it must begin with postgresql://; unset it for SQLite files below LLAMESH_HOME")
    parts = urlsplit(SCHEME.sub("postgresql://", url, count=1))
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, colon, password = credentials.partition(":")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in given:
        if name not in PARAMETERS:
            raise ValueError(f"it has the parameter {name!r}; known are {', '.join(sorted(PARAMETERS))}")
    if given.get("sslmode", "prefer") not in SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(SSL_MODES)}")
    timeout = given.pop("connect_timeout", "")
    if timeout and not re.fullmatch(r"[1-9]\d{0,5}", timeout):
        raise ValueError("connect_timeout must be a number of seconds, at least 1")
    ports = [host.rpartition(":")[2] for host in hosts.split(",") if re.search(r":[^\]]*$", host)]
    if not all(
        re.fullmatch(r"\d{1,5}", port) and 0 < int(port) < 65536 for port in [*ports, *_list(given.get("port"))]
    ):
        raise ValueError("a port in it is not a number from 1 to 65535")
    # Quote again: people write passwords unquoted, and an "@" must not end them.
    name = quote(unquote(user), safe="") + (colon and ":" + quote(unquote(password), safe=""))
    dsn = f"postgresql://{name}{'@' if credentials else ''}{hosts}{parts.path}"
    if given:
        dsn += "?" + urlencode(given, quote_via=quote)
    return PostgresAddress(
        dsn=dsn,
        place=hosts or given.get("host", "") or "the local socket",
        named="application_name" in given,
        connect_timeout=float(timeout) if timeout else None,
        files=tuple((name, given[name]) for name in FILES if given.get(name)),
    )


def _list(value: str | None) -> list[str]:
    return value.split(",") if value else []
