"""The contracts without the SDK: plain gRPC through the same front door. `llamesh login` once, then `python examples/grpc_client.py`."""

import sys
from urllib.parse import urlsplit

import grpc

from llamesh.client.profile import load_profile
from llamesh.client.trust import root_certificates
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc

mesh = load_profile()  # The mesh that commands use: of this machine, of the login, or LLAMESH_URL.
if not mesh.token:
    sys.exit(f"not logged in at {mesh.url}: llamesh login")
address = urlsplit(mesh.url)
encrypted = address.scheme == "https"
target = f"{address.hostname}:{address.port or (443 if encrypted else 80)}"
signed = [("authorization", f"Bearer {mesh.token}")]
if encrypted:
    channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(root_certificates(mesh.url)))
else:
    channel = grpc.insecure_channel(target)
with channel:
    gateway = gateway_pb2_grpc.GatewayServiceStub(channel)
    for server in gateway.ListServers(gateway_pb2.ListServersRequest(), metadata=signed).servers:
        print(f"{server.model_name}: {server.ready_replicas} of {server.replicas} engines answer at {server.endpoint}")
    # What is there, then what changes.
    for event in gateway.Watch(gateway_pb2.WatchRequest(), metadata=signed, timeout=60):
        print(event.WhichOneof("event"))
        if event.HasField("synced"):
            break
