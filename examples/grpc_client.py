"""The contracts without the SDK: plain gRPC through the same front door. `python examples/grpc_client.py`."""

import os

import grpc

from llamesh.v1 import gateway_pb2, gateway_pb2_grpc

address = os.environ.get("LLAMESH_URL", "http://localhost:8200").removeprefix("http://")
with grpc.insecure_channel(address) as channel:
    gateway = gateway_pb2_grpc.GatewayServiceStub(channel)
    login = gateway.CreateToken(gateway_pb2.CreateTokenRequest(username="admin", password="admin"))
    signed = [("authorization", f"Bearer {login.access_token}")]
    for server in gateway.ListServers(gateway_pb2.ListServersRequest(), metadata=signed).servers:
        print(f"{server.model_name}: {server.ready_replicas} of {server.replicas} engines answer at {server.endpoint}")
    # What is there, then what changes.
    for event in gateway.Watch(gateway_pb2.WatchRequest(), metadata=signed, timeout=60):
        print(event.WhichOneof("event"))
        if event.HasField("synced"):
            break
