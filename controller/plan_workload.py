"""Plans the next actions for a server whose place replaces engines by itself: the Deployment of a cluster. No I/O.

Of the rules of `controller.plan`, 1 to 4 and 6 are kept by the cluster: it makes a pod before it takes one away, and its readiness gate
(`Admit`) says when the new one gets requests. What is left is decided here: how many engines run, which of them Envoy routes to, and when
the server sleeps. A spec that the contract service has not accepted changes nothing that runs.

Invariant: as in `controller.plan`, all state is in the arguments.
"""

from __future__ import annotations

import math

from controller.actions import Action, Admit, Decision, FallAsleep, Forget, Locate, Scale
from controller.idleness import idle_left
from controller.observed import Desired, ObservedState
from controller.runtimes import EnginePhase


def plan_workload(desired: Desired, state: ObservedState) -> Decision:
    """Decide the actions and endpoints of one server."""
    running = [each for each in state.engines if each.engine.phase in (EnginePhase.STARTING, EnginePhase.READY)]
    answering = sorted((each for each in running if each.answers), key=lambda each: each.engine.instance)
    actions: list[Action] = [
        Admit(each.engine.instance) for each in answering if each.published and not each.engine.admitted
    ]
    left = math.inf
    if desired.removing:
        if not state.engines:
            actions.append(Forget())
    elif desired.accepted:
        if desired.engine_count and not state.model_available:
            actions.append(Locate())
        else:
            actions.append(Scale(desired.engine_count))
        if len(answering) == desired.engine_count and not any(
            each.engine.phase is EnginePhase.STARTING for each in running
        ):
            left = idle_left(desired, state, running)
        if left <= 0:
            actions[-1] = FallAsleep()
    return Decision(tuple(actions), tuple(each.engine.instance for each in answering), left if left > 0 else math.inf)
