"""The names under which health is asked over gRPC."""

SERVICE = "grpc.health.v1.Health"
"""Each member's own, on its socket; at the front door that of the mesh."""
OF_MESH = "llamesh-mesh.grpc.health.v1.Health"
"""What the gateway calls the latter: Envoy asks it by this name when a client has asked by the usual one."""
