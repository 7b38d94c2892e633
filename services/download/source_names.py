"""Names that come from a source: the default name of a model, and the form of a source that may be shown."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from llamesh.names import served_name


def shown_source(recorded: str) -> str:
    """A source as it may be shown: of a file only its name, because an earlier release recorded its whole URL."""
    return unquote(urlsplit(recorded).path).rpartition("/")[2] if recorded.startswith("file:") else recorded


def name_of_source(shown: str, model_uuid: str) -> str:
    """The name of a model that the caller gave none: that of the source's file, or else the model's id."""
    path = unquote(urlsplit(shown).path) if "://" in shown else shown
    return served_name(path.rpartition("/")[2], model_uuid)
