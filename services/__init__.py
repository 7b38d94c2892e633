"""The services of the mesh: each owns its state and speaks gRPC."""
