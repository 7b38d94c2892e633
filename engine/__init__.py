"""Starts llama.cpp from typed parameters, as the `llama-server` program or as the embedded library.

`python -m engine SPEC.json` is one engine: a small supervising process and llama.cpp as its only child.
"""
