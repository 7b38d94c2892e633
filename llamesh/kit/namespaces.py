"""Namespaces of servers, as every member understands them."""

from __future__ import annotations

DEFAULT_NAMESPACE = "default"
"""Where servers are that name no namespace."""
