"""Envoy's control plane, in two parts.

1. The desired configuration, without I/O: `intent` builds resources with `clusters`, `inference` and `management` (which share `listeners`,
   `tokens`, `restarts`, `replies`, `scripts` and `templates`) and stores them in a `snapshot`. `public_api`, `anonymous_callers`,
   `header_names` and `digest` compute values for the filters.
2. The protocol: `serving` has one `stream` for each Envoy, a state machine of the delta xDS protocol.
"""
