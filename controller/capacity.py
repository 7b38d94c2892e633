"""Builds the answer to GetCapacity from the memory of machines and the engines that may run on them. No I/O."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from controller.footprint import Claim, free, promised, shared_weights
from llamesh.kit.holders import Holder
from llamesh.kit.machine_memory import MachineMemory
from llamesh.v1.controller_pb2 import Capacity, MemoryHolder, NodeCapacity, SharedWeights


def capacity(memory: MachineMemory, reserve: int, claims: Sequence[Claim], holders: Sequence[Holder] = ()) -> Capacity:
    """Return the answer to GetCapacity for one machine on which these engines may run."""
    node = NodeCapacity(
        name=socket.gethostname(),
        total_bytes=memory.total_bytes,
        available_bytes=memory.available_bytes,
        promised_bytes=promised(claims),
        free_bytes=free(memory, reserve, claims),
        shared_weights=[
            SharedWeights(model_uuid=model, shared_bytes=shared) for model, shared in shared_weights(claims).items()
        ],
        holders=[
            MemoryHolder(server_uuid=each.server_uuid, model_name=each.model_name, freed_bytes=each.freed_bytes)
            for each in holders
        ],
    )
    return Capacity(nodes=[node])


def capacity_of_nodes(nodes: Mapping[str, int], reserve: int) -> Capacity:
    """Return the answer to GetCapacity for the nodes of a cluster, by name and bytes.

    What engines and other pods have taken is left out: the scheduler knows it, and places or keeps waiting.
    """
    return Capacity(
        nodes=[
            NodeCapacity(name=name, total_bytes=size, available_bytes=size, free_bytes=max(0, size - reserve))
            for name, size in sorted(nodes.items())
        ]
    )
