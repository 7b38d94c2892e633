"""Names of gRPC health services."""

SERVICE = "grpc.health.v1.Health"
"""The standard name: on a member's socket the health of that member, at the front door that of the mesh."""
OF_MESH = "llamesh-mesh.grpc.health.v1.Health"
"""Name of the mesh's health on the gateway's socket. Envoy routes clients' calls of the standard name to it."""
