"""What a plan consists of: actions and endpoints. Values only; `controller.actuator` carries the actions out."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Start:
    """Start an engine for a replica."""

    replica: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Let no new request reach an engine."""

    instance: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Take a draining engine back."""

    instance: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell an engine to end."""

    instance: str
    grace: float


@dataclass(frozen=True, slots=True)
class Locate:
    """Find the model's file."""


@dataclass(frozen=True, slots=True)
class FallAsleep:
    """Note that the server sleeps because it was idle."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing is left of a removed server: forget it."""


Action = Start | Drain | Resume | Stop | Locate | FallAsleep | Forget


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done now."""

    actions: tuple[Action, ...]
    endpoints: tuple[str, ...]
    """Instances that requests are to reach once the actions are done."""
    requeue_after: float = math.inf
    """Seconds after which time alone may change the plan."""
