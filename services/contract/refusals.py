"""A refusal: a rule that a request breaks, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass, field

from llamesh.kit.errors import Reason, name_of, spec_of


@dataclass(frozen=True, slots=True)
class PolicyRefusal:
    """A rule that a request breaks. The fields are those of the message Refusal in contract.proto."""

    reason: str
    message: str
    remedy: str
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, reason: Reason.ValueType, message: str, metadata: dict[str, str]) -> PolicyRefusal:
        """Return the refusal with a reason of the contract, and its remedy."""
        return cls(name_of(reason), message, spec_of(reason).remedy, metadata)
