"""Manifests: files that declare models, contracts, users, servers and keys (docs/adr/0026-manifests.md)."""
