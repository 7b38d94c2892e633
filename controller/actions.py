"""The actions and endpoints that make up a plan. They are values; `controller.actuator` carries the actions out."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Start:
    """Start an engine for a replica."""

    replica: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop sending new requests to an engine."""

    instance: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Use a draining engine again."""

    instance: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop an engine."""

    instance: str
    grace: float


@dataclass(frozen=True, slots=True)
class Locate:
    """Find the model's file."""


@dataclass(frozen=True, slots=True)
class FallAsleep:
    """Record that the server sleeps because it was idle."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete the row of a removed server that has no engines left."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Let this number of engines run; the place where they run replaces them."""

    replicas: int


@dataclass(frozen=True, slots=True)
class Admit:
    """Tell the place where an engine runs that Envoy sends it requests."""

    instance: str


Action = Start | Drain | Resume | Stop | Locate | FallAsleep | Forget | Scale | Admit


@dataclass(frozen=True, slots=True)
class Decision:
    """Result of a plan: the actions to carry out now, and the endpoints afterwards."""

    actions: tuple[Action, ...]
    endpoints: tuple[str, ...]
    """Instances that Envoy should route requests to after the actions."""
    requeue_after: float = math.inf
    """Seconds after which time alone may change the plan."""
