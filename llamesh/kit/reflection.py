"""gRPC server reflection, for tools such as grpcurl that have no copy of the contracts.

`v1` and `v1alpha` have the same messages under two names. Clients try `v1` first, and fall back only after UNIMPLEMENTED, so both are
served. The library contains the file of `v1alpha` only; the file of `v1` is made from it.

Invariant: services with internal methods only are not listed, and every listed service can be described.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from llamesh.v1 import options_pb2

_NEWER = "grpc.reflection.v1"
_NEWER_FILE = "grpc/reflection/v1/reflection.proto"

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


class _Pool:
    """The default pool plus the file of v1. Finds a service's file by the name of a method too, which `grpcurl describe` needs."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def FindFileByName(self, name: str) -> FileDescriptor:  # noqa: N802 - the pool's own name
        return (_newer_pool() if name == _NEWER_FILE else self._pool).FindFileByName(name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - the pool's own name
        pool = _newer_pool() if symbol.startswith(_NEWER + ".") else self._pool
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            method: MethodDescriptor = pool.FindMethodByName(symbol)
            return method.containing_service.file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


@cache
def _newer_pool() -> descriptor_pool.DescriptorPool:
    """Return a pool with the file of v1: that of v1alpha with another package. Made when a client asks, because it takes 10 ms."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    text = text_format.MessageToString(file).replace(file.package, _NEWER).replace(file.name, _NEWER_FILE)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(text_format.Parse(text, descriptor_pb2.FileDescriptorProto()).SerializeToString())
    return pool


def is_public(service: str) -> bool:
    """Whether a service has a method that is not internal."""
    methods = descriptor_pool.Default().FindServiceByName(service).methods
    return any(not method.GetOptions().Extensions[options_pb2.access].internal for method in methods)


def add_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Serve reflection for the public services among these."""
    servicer = ReflectionServicer([*filter(is_public, services), *NAMES], pool=_Pool())
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in NAMES)
    server.add_generic_rpc_handlers(tuple(handlers))
