"""Envoy's control plane, in two parts.

1. What should be in Envoy, without I/O: `intent` builds resources with `clusters`, `inference` and `management` (which share `listeners`,
   `tokens`, `restarts`, `replies`, `scripts` and `templates`) and keeps them in a `snapshot`. `public_api`, `callers`, `header_names` and
   `digest` compute what the filters must know.
2. How Envoy gets it: `serving` has one `stream` for each Envoy, a state machine of the delta xDS protocol.
"""
