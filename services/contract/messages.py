"""Encoders: rows and estimates of the contract service as messages of contract.proto, and the decoder of timestamps."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from llamesh.kit.errors import invalid_field
from llamesh.v1 import contract_pb2
from llamesh.v1.server_pb2 import MemoryEstimate
from services.contract import memory_estimate, placement_policy, refusals
from services.contract.tables import ContractRow, DecisionRow, KeyRow, UsageRow


def moment(timestamp: Timestamp, name: str) -> datetime:
    """Return the time in a field of a request. Raises INVALID_FIELD if it is out of range."""
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise invalid_field(name, "is outside of the years 1 to 9999") from error


def timestamp(value: datetime) -> Timestamp:
    """Encode a time."""
    message = Timestamp()
    message.FromDatetime(value)
    return message


def memory_message(memory: memory_estimate.MemoryEstimate) -> MemoryEstimate:
    """Encode an estimate."""
    return MemoryEstimate(
        weights_bytes=memory.weights_bytes,
        kv_cache_bytes=memory.kv_cache_bytes,
        overhead_bytes=memory.overhead_bytes,
        replicas=memory.replicas,
        total_bytes=memory.total_bytes,
        shared_weights_bytes=memory.shared_weights_bytes,
    )


def refusal_message(refusal: refusals.PolicyRefusal) -> contract_pb2.Refusal:
    """Encode a refusal."""
    return contract_pb2.Refusal(
        reason=refusal.reason, message=refusal.message, remedy=refusal.remedy, metadata=refusal.metadata
    )


def placement_policy_message(policy: placement_policy.PlacementPolicy) -> contract_pb2.PlacementPolicy:
    """Encode what placements may name."""
    return contract_pb2.PlacementPolicy(
        engine_images=policy.engine_images,
        gpu_resources=policy.gpu_resources,
        priority_classes=policy.priority_classes,
        node_labels=policy.node_labels,
    )


def contract_message(row: ContractRow, running_requests: int) -> contract_pb2.Contract:
    """Encode a contract."""
    return contract_pb2.Contract(
        contract_id=row.contract_id,
        display_name=row.display_name,
        max_concurrent_requests=row.max_concurrent_requests,
        models=row.models,
        create_time=timestamp(row.create_time),
        update_time=timestamp(row.update_time),
        running_requests=running_requests,
    )


def usage_message(row: UsageRow) -> contract_pb2.Usage:
    """Encode usage."""
    return contract_pb2.Usage(
        day=row.day,
        subject=row.subject,
        model_name=row.model_name,
        contract_id=row.contract_id,
        requests=row.requests,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        unknown_requests=row.unknown_requests,
        user_uid=row.uid,
    )


def key_message(row: KeyRow, state: contract_pb2.KeyState.ValueType) -> contract_pb2.Key:
    """Encode a key."""
    return contract_pb2.Key(
        key_id=row.key_id,
        display_name=row.display_name,
        owner=row.owner,
        contract_id=row.contract_id,
        scopes=row.scopes,
        create_time=timestamp(row.create_time),
        expire_time=timestamp(row.expire_time),
        revoke_time=timestamp(row.revoke_time) if row.revoke_time else None,
        state=state,
    )


def decision_message(row: DecisionRow) -> contract_pb2.Decision:
    """Encode a decision."""
    return contract_pb2.Decision(
        decision_id=row.decision_id,
        create_time=timestamp(row.create_time),
        subject=row.subject,
        action=row.action,
        object=row.object,
        allowed=row.allowed,
        refusals=[contract_pb2.Refusal(**refusal) for refusal in row.refusals],
        memory=MemoryEstimate(**row.memory) if row.memory else None,
        contract_id=row.contract_id,
    )
