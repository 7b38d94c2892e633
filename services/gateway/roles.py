"""Roles of users: numbers in the database, an enum in the contract, words in tokens."""

from __future__ import annotations

from llamesh.v1 import gateway_pb2


def as_role(number: int) -> gateway_pb2.Role.ValueType:
    """Return the role that a number in the database stands for."""
    return gateway_pb2.Role.Value(gateway_pb2.Role.Name(gateway_pb2.Role.ValueType(number)))


def role_claim(number: int) -> str:
    """Return the role as tokens carry it: "admin", "user" or "inference"."""
    return gateway_pb2.Role.Name(as_role(number)).removeprefix("ROLE_").lower()
