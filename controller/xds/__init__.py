"""Envoy's control plane: `builders` make messages, `snapshot` holds them, `stream` is the protocol, `server` serves."""
