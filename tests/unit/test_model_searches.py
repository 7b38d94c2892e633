"""Searches of the catalogue find what they say, in order, and a page costs the same wherever it is and however long the list is."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session

from llamesh.cli.models import SourceKind
from llamesh.kit.errors import MeshError
from llamesh.kit.pages import PageQuery, Pages
from llamesh.model_addresses import SCHEMES
from llamesh.v1.model_pb2 import ModelSourceKind
from services.download.model_search import SOURCE_KINDS, ModelSearch, searchable
from services.download.tables import ModelAliasRow, ModelFileRow, ModelRow, ModelTagRow

PAGES = Pages(b"key")
SIZES = (500, 5_000)
PAGE = 10
SEARCHES = [
    ModelSearch(order=order, descending=descending, **{name: value} if name else {})  # type: ignore[arg-type]
    for order in ("create_time", "name", "size_bytes")
    for descending in (False, True)
    for name, value in (
        ("", ""),
        ("architecture", "llama"),
        ("quantisation", "q8_0"),
        ("source_kind", "hub"),
        ("tag", "chat"),
    )
]


def filled(count: int) -> Engine:
    """A catalogue with `count` models. Every tenth has a value that the searches look for; half have the tag."""
    engine = create_engine("sqlite://")
    for table in (ModelRow, ModelFileRow, ModelTagRow, ModelAliasRow):
        table.__table__.create(engine)  # type: ignore[attr-defined]
    chance = random.Random(13)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    with Session(engine) as session:
        for index in range(count):
            name = f"{chance.choice(('Qwen', 'Llama'))}-{chance.randrange(count)}.gguf"
            gguf = {
                "architecture": chance.choice(("llama", *("qwen3",) * 9)),
                "quantisation": chance.choice(("Q8_0", *("F16",) * 9)),
            }
            source = chance.choice(("hf:a/b", *("file.gguf",) * 9))
            model_uuid = f"m{chance.getrandbits(64):x}"
            file = ModelFileRow(
                model_uuid=model_uuid, number=1, role="WEIGHTS", name=name, size_bytes=8, sha256="", object_key=""
            )
            session.add(
                ModelRow(
                    model_uuid=model_uuid,
                    files=[file],
                    name=name,
                    size_bytes=chance.randrange(1 << 40) // 8 * 8,
                    source=source,
                    gguf=gguf,
                    create_time=start + timedelta(seconds=index // 3),
                    **searchable(name, gguf, source),
                )
            )
        session.flush()
        for row in session.query(ModelRow):
            if chance.random() < 0.5:
                session.add(ModelTagRow(tag="chat", model_uuid=row.model_uuid))
        session.commit()
    return engine


@pytest.fixture(scope="module")
def catalogues() -> dict[int, Engine]:
    return {count: filled(count) for count in SIZES}


def pages(engine: Engine, search: ModelSearch, size: int = PAGE) -> Iterator[Sequence[ModelRow]]:
    token = ""
    while True:
        page = PageQuery(PAGES, size, token).of(search.listing)
        with Session(engine) as session:
            rows, token = page.cut(session.scalars(search.select(page)).all(), search.key)
        yield rows
        if not token:
            return


@contextmanager
def counted(engine: Engine) -> Iterator[dict[str, int]]:
    """Counts the statements, and the steps of SQLite's virtual machine in tens: what a statement costs without a clock."""
    counts = {"statements": 0, "steps": 0}

    def step() -> int:
        counts["steps"] += 1
        return 0

    def statement(*_: object) -> None:
        counts["statements"] += 1

    connection = engine.raw_connection()
    connection.set_progress_handler(step, 10)  # type: ignore[attr-defined]
    connection.close()
    event.listen(engine, "before_cursor_execute", statement)
    try:
        yield counts
    finally:
        event.remove(engine, "before_cursor_execute", statement)
        connection = engine.raw_connection()
        connection.set_progress_handler(None, 0)  # type: ignore[attr-defined]
        connection.close()


def costs(engine: Engine, search: ModelSearch) -> list[int]:
    """The steps of each full page."""
    found = []
    listed = pages(engine, search)
    while True:
        with counted(engine) as counts:
            rows = next(listed, ())
        # One for the models, one for their files.
        assert counts["statements"] == (2 if rows else 0)
        if len(rows) < PAGE:
            return found
        found.append(counts["steps"])


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_page_costs_the_same_anywhere_in_a_list_of_any_length(
    catalogues: dict[int, Engine], search: ModelSearch
) -> None:
    few, many = (costs(catalogues[count], search) for count in SIZES)
    assert len(many) > 6 * len(few)
    # A tag is looked up model by model along the order: half of the models have it.
    whole = costs(catalogues[500], replace(ModelSearch(), order=search.order, descending=search.descending))
    assert max(*few, *many) < (4 if search.tag else 2) * max(whole)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_pages_hold_each_model_once_and_in_order(catalogues: dict[int, Engine], search: ModelSearch) -> None:
    found = [row for page in pages(catalogues[500], search) for row in page]
    keys = [search.key(row) for row in found]
    assert keys == sorted(set(keys), reverse=search.descending)
    assert len(found) == (500 if search == ModelSearch(order=search.order, descending=search.descending) else len(keys))
    assert all(row.architecture == search.architecture for row in found if search.architecture)
    assert all(row.quantisation == search.quantisation for row in found if search.quantisation)
    assert all(row.source_kind == search.source_kind for row in found if search.source_kind)


def names(engine: Engine, search: ModelSearch) -> set[str]:
    return {row.name for page in pages(engine, search) for row in page}


def test_a_part_of_a_name_is_found_in_any_case_and_taken_literally(catalogues: dict[int, Engine]) -> None:
    engine = catalogues[500]
    everything = names(engine, ModelSearch())
    assert (
        names(engine, ModelSearch(query="wEN-1")) == {name for name in everything if "wen-1" in name.lower()} != set()
    )
    assert names(engine, ModelSearch(query="%")) == names(engine, ModelSearch(query="q_en")) == set()


def test_all_filters_must_hold(catalogues: dict[int, Engine]) -> None:
    search = ModelSearch(query="qwen", architecture="LLAMA", quantisation="F16", tag="Chat", source_kind="file")
    found = [row for page in pages(catalogues[5_000], search) for row in page]
    assert found
    for row in found:
        assert (row.name[:4], row.architecture, row.quantisation, row.source_kind) == ("Qwen", "llama", "f16", "file")


def test_a_page_token_is_valid_for_the_same_search_only(catalogues: dict[int, Engine]) -> None:
    search = ModelSearch(architecture="llama")
    page = PageQuery(PAGES, 1, "").of(search.listing)
    with Session(catalogues[500]) as session:
        _, token = page.cut(session.scalars(search.select(page)).all(), search.key)
    for other in (ModelSearch(), ModelSearch(quantisation="llama"), ModelSearch(architecture="llama", descending=True)):
        with pytest.raises(MeshError, match="was not made"):
            PageQuery(PAGES, 1, token).of(other.listing)


def test_every_scheme_of_a_source_has_a_kind_of_the_contract() -> None:
    """A scheme without a kind would be listed as a file, and a kind that the command does not take could not be searched for."""
    assert SOURCE_KINDS.keys() == set(SCHEMES) - {"file"}
    kinds = {f"MODEL_SOURCE_KIND_{kind.upper()}" for kind in ("unspecified", "file", *SOURCE_KINDS.values())}
    assert kinds == set(ModelSourceKind.keys())
    assert set(get_args(SourceKind)) == {"file", *SOURCE_KINDS.values()}, "llamesh models --source"
