"""Requests that legitimate clients send, recorded or written after published shapes, and their hostile twins."""
