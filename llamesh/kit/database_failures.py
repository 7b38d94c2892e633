"""Maps failures of the database to errors of the contract.

Invariant: a database that is unreachable, locked or too slow is UNAVAILABLE with the component `database`, never INTERNAL. Violated
constraints (IntegrityError) and faults in our own SQL are not mapped.
"""

from __future__ import annotations

from typing import TypeVar

import asyncpg
from sqlalchemy.exc import DBAPIError, IntegrityError

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.postgres import PostgresRefusedError

E = TypeVar("E", bound=MeshError)

RETRY_SECONDS = 1.0
FULL_RETRY_SECONDS = 30.0

# Classes and codes of PostgreSQL (SQLSTATE), from appendix A of its documentation.
_DATA_EXCEPTION = "22"
_DISK_FULL = "53100"
_AWAY = ("08", "53", "57P", "58", "28", "3D")
"""Connection lost, resources exhausted, shutting down or starting, system error, refused credentials, no such database."""
_BUSY = ("55P03", "57014", "40", "25006", "25P03", "25P04")
"""Lock not available, statement cancelled by its timeout, deadlock or conflict, a standby, idle or transaction timeout."""
_DAMAGED = "XX001", "XX002"

_SQLITE_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
_SQLITE_AWAY = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_PROTOCOL")
_SQLITE_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


class DatabaseUnreachableError(MeshError):
    """COMPONENT_UNAVAILABLE because the database did not answer. It opens the circuit breaker: later callers fail at once."""


class DatabaseRefusedError(DatabaseUnreachableError):
    """The database refuses the connection, or its address is wrong: a person must act."""


class DatabaseBusyError(MeshError):
    """COMPONENT_UNAVAILABLE because a lock or a statement took too long. The database answers."""


def failure_of(error: BaseException) -> MeshError | None:
    """Return the MeshError for a failure; None if it is raised unchanged."""
    if isinstance(error, PostgresRefusedError):
        return unreachable("the database refuses the connection", DatabaseRefusedError)
    if isinstance(error, DBAPIError):
        return None if isinstance(error, IntegrityError) else _of_driver(error)
    if isinstance(error, asyncpg.PostgresError):
        return _of_sqlstate(str(error.sqlstate or ""))
    if isinstance(error, TimeoutError):
        return unreachable("the database did not answer in time")
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError):
        return unreachable()
    return None


def unavailable(message: str) -> MeshError:
    """Return COMPONENT_UNAVAILABLE for a database that answers but cannot serve the operation now."""
    return _unavailable(MeshError, message)


def unreachable(
    message: str = "the database does not answer", kind: type[DatabaseUnreachableError] = DatabaseUnreachableError
) -> DatabaseUnreachableError:
    """Return COMPONENT_UNAVAILABLE for a database that does not answer."""
    return _unavailable(kind, message)


def _unavailable(kind: type[E], message: str) -> E:
    return kind(
        Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, message, {"component": "database"}, retry_after=RETRY_SECONDS
    )


def damaged(file: str, what: str) -> MeshError:
    """Return DATABASE_DAMAGED for a SQLite file; `file` is its path below LLAMESH_HOME."""
    return MeshError(Reason.ERROR_REASON_DATABASE_DAMAGED, f"the database file {file} {what}", {"file": file})


def _of_driver(error: DBAPIError) -> MeshError | None:
    name = str(getattr(error.orig, "sqlite_errorname", ""))
    if name:
        return _of_sqlite(name)
    state = str(getattr(error.orig, "sqlstate", None) or "")
    if state:
        return _of_sqlstate(state)
    return unreachable("the connection to the database was lost") if error.connection_invalidated else None


def _of_sqlite(name: str) -> MeshError | None:
    if name == "SQLITE_FULL":
        return _full()
    if name.startswith(_SQLITE_BUSY):
        return unavailable("the database is locked by another process")
    if name.startswith(_SQLITE_AWAY):
        return unavailable("the database file cannot be read or written")
    if name.startswith(_SQLITE_DAMAGED):
        return damaged("of this service", "is damaged")
    return None


def _of_sqlstate(state: str) -> MeshError | None:
    if state.startswith(_DATA_EXCEPTION):
        return MeshError(Reason.ERROR_REASON_INVALID_FIELD, "a value of the request cannot be stored", {"fields": ""})
    if state == _DISK_FULL:
        return _full()
    if state in _DAMAGED:
        return MeshError(
            Reason.ERROR_REASON_DATABASE_DAMAGED, "the database reports damaged data", {"file": "PostgreSQL"}
        )
    if state.startswith(_BUSY):
        return _unavailable(DatabaseBusyError, "the database is busy: a lock or a statement took too long")
    if state.startswith(_AWAY):
        return unreachable("the database takes no connections now")
    return None


def _full() -> MeshError:
    return MeshError(
        Reason.ERROR_REASON_STORAGE_FULL, "the disk is full: nothing was written", retry_after=FULL_RETRY_SECONDS
    )
