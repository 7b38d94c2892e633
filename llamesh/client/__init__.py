"""The Python SDK: `Client` and `AsyncClient`, the same calls with and without `await`.

The asynchronous half (aio.py) is the source; sync.py is written from it by tools/sync_client.py, and a test compares the two.
"""
