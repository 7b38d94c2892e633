"""The client without `await` is the one with it, converted."""

from __future__ import annotations

import inspect

from llamesh.client import aio, sync
from tools.sync_client import CLIENT, package


def test_the_sync_modules_equal_the_output_of_the_generator() -> None:
    assert {path: path.read_text() for path in (CLIENT / "sync").glob("*.py")} == package()


def test_both_have_the_same_calls() -> None:
    for name in ("Client", "Models", "Servers", "Keys", "Users", "Contracts", "Pull"):
        with_await = inspect.getmembers(getattr(aio, f"Async{name}"), inspect.isfunction)
        without = dict(inspect.getmembers(getattr(sync, name), inspect.isfunction))
        for method, function in with_await:
            if not method.startswith("__"):
                assert list(inspect.signature(function).parameters) == list(
                    inspect.signature(without[method]).parameters
                )
                assert not inspect.iscoroutinefunction(without[method])
                assert not inspect.isasyncgenfunction(without[method])
