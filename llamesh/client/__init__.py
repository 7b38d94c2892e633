"""The Python SDK: `Client` and `AsyncClient`, the same calls with and without `await`.

The package `aio` is the source; tools/sync_client.py writes the package `sync` from it, and a test compares the two.
"""
