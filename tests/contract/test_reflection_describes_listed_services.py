"""Server reflection as grpcurl asks for it: each version lists the public services, and each that is listed can be described."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from llamesh.kit.reflection import NAMES
from llamesh.kit.serving import Member
from llamesh.v1 import gateway_pb2_grpc


class Reflection:
    """One version of reflection, asked over a real channel."""

    def __init__(self, channel, version: str) -> None:
        self._call = channel.stream_stream(
            f"/{version}/ServerReflectionInfo",
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )

    async def ask(self, **question: str) -> ServerReflectionResponse:
        async def questions() -> AsyncIterator[ServerReflectionRequest]:
            yield ServerReflectionRequest(**question)

        (answer,) = [answer async for answer in self._call(questions())]
        return answer

    async def services(self) -> list[str]:
        return [item.name for item in (await self.ask(list_services="")).list_services_response.service]

    async def files(self, **question: str) -> list[descriptor_pb2.FileDescriptorProto]:
        answer = await self.ask(**question)
        assert not answer.HasField("error_response"), answer
        found = answer.file_descriptor_response.file_descriptor_proto
        return [descriptor_pb2.FileDescriptorProto.FromString(file) for file in found]


@pytest.fixture(params=NAMES)
async def reflection(request, one_settings, start_member, connect) -> Reflection:
    def register(member: Member) -> None:
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(gateway_pb2_grpc.GatewayServiceServicer(), member.server)
        member.announce("llamesh.v1.GatewayService", "llamesh.v1.SigningKeyService")
        member.show("llamesh.v1.ContractService", "llamesh.v1.DownloadService")

    await start_member(one_settings, "gateway", register)
    return Reflection(connect(one_settings, "gateway"), request.param)


async def test_every_service_that_is_listed_can_be_described(reflection: Reflection) -> None:
    listed = await reflection.services()
    assert set(NAMES) < set(listed)
    assert "llamesh.v1.GatewayService" in listed
    assert "llamesh.v1.SigningKeyService" not in listed
    for name in listed:
        described = {
            f"{file.package}.{service.name}": file
            for file in await reflection.files(file_containing_symbol=name)
            for service in file.service
        }
        assert name in described
        # What a client asks next: the file by its name, each method, the messages of each.
        file = described[name]
        assert file.name in [found.name for found in await reflection.files(file_by_filename=file.name)]
        for service in file.service:
            for method in service.method:
                await reflection.files(file_containing_symbol=f"{file.package}.{service.name}.{method.name}")
                for message in (method.input_type, method.output_type):
                    await reflection.files(file_containing_symbol=message.removeprefix("."))


async def test_an_unknown_symbol_is_an_error_of_the_protocol(reflection: Reflection) -> None:
    for symbol in ("llamesh.v1.Nope", "grpc.reflection.v1.Nope", "grpc.reflection.v1.ServerReflection.Nope"):
        answer = await reflection.ask(file_containing_symbol=symbol)
        assert answer.error_response.error_code == 5
