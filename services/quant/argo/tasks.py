"""The tasks of a workflow as the cluster reports them: which step each one is, and how it ended. No I/O.

Argo's controller writes a node per task: a node `Retry` whose children are the pods of its tries. Invariant: a step's outcome is what its
own program reported; the words of the cluster are used only where the program could report nothing (its pod was killed or never ran).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.quant.argo.pod_files import OUTCOME_PARAMETER
from services.quant.output_text import printable
from services.quant.states import StepKind
from services.quant.step_process import CRASHED, DONE, MAX_LOG, REFUSED, Outcome

_ENDED = ("Succeeded", "Failed", "Error")


@dataclass(frozen=True, slots=True)
class TaskState:
    """What the cluster says of a step. `outcome` is None until it has ended; `words` says why it waits."""

    started: bool
    tries: int = 0
    done: int = 0
    total: int = 0
    words: str = ""
    outcome: Outcome | None = None


def task_name(kind: str, of_type: str) -> str:
    """Return the name of a step's task: Argo allows letters, digits and hyphens."""
    return f"{kind}-{of_type.replace('_', '-')}" if of_type else str(kind)


def task_state(workflow: Mapping[str, Any], kind: str, of_type: str) -> TaskState | None:
    """Return the state of a step's task; None if the cluster has not begun it, or left it out."""
    nodes = _nodes(workflow)
    name = task_name(kind, of_type)
    node = next((each for each in nodes.values() if each.get("displayName") == name), None)
    if node is None or node.get("phase") in ("Skipped", "Omitted"):
        return None
    pods = (
        [nodes[each] for each in node.get("children") or () if each in nodes] if node.get("type") == "Retry" else [node]
    )
    last = pods[-1] if pods else node
    phase = node.get("phase", "")
    words = printable(str(last.get("message") or node.get("message") or ""))[:MAX_LOG]
    done, total = _progress(last)
    ended = phase in _ENDED
    return TaskState(
        started=ended or len(pods) > 1 or _has_run(last),
        tries=max(1, len(pods)),
        done=done,
        total=total,
        words="" if ended else words,
        outcome=_outcome(kind, last, phase == "Succeeded", words) if ended else None,
    )


def has_begun(workflow: Mapping[str, Any]) -> bool:
    """Whether a pod of a workflow has run: then all that its pods need is there."""
    return any(each.get("type") == "Pod" and _has_run(each) for each in _nodes(workflow).values())


def completed(workflow: Mapping[str, Any]) -> bool:
    """Whether nothing of a workflow runs any more."""
    return (workflow.get("status") or {}).get("phase") in _ENDED


def words_of(workflow: Mapping[str, Any]) -> str:
    """Return how a workflow ended, for a step of which the cluster says nothing."""
    status = workflow.get("status") or {}
    message = status.get("message")
    return f"its workflow ended as {status.get('phase')} without it" + (f": {message}" if message else "")


def _nodes(workflow: Mapping[str, Any]) -> Mapping[str, Any]:
    return (workflow.get("status") or {}).get("nodes") or {}


def _has_run(node: Mapping[str, Any]) -> bool:
    return node.get("phase") not in ("Pending", "", None)


def _progress(node: Mapping[str, Any]) -> tuple[int, int]:
    done, _, total = str(node.get("progress") or "").partition("/")
    # A task without progress of its own counts as one of one.
    return (int(done), int(total)) if done.isdigit() and total.isdigit() and int(total) > 1 else (0, 0)


def _outcome(kind: str, node: Mapping[str, Any], succeeded: bool, words: str) -> Outcome:
    report = _report(node)
    if report is not None:
        code = report.get("code")
        outcome = Outcome(
            DONE if succeeded else (code if isinstance(code, int) and code != DONE else CRASHED),
            result=_dictionary(report.get("result")),
            reason=str(report.get("reason") or ""),
            message=str(report.get("message") or ""),
            log=str(report.get("log") or ""),
        )
        if not succeeded or outcome.result or kind == StepKind.PUBLISH:
            return outcome
    if succeeded:
        return Outcome(
            REFUSED,
            message="its pod succeeded, but its result did not arrive: the service account of the workflows needs the rights"
            " create and patch on workflowtaskresults (deploy/argo/quant.yaml)",
        )
    return Outcome(CRASHED, message=f"its pod ended without a report: {words or 'the cluster gives no reason'}")


def _report(node: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for each in (node.get("outputs") or {}).get("parameters") or ():
        if each.get("name") == OUTCOME_PARAMETER:
            try:
                return _dictionary(json.loads(each.get("value") or "")) or None
            except ValueError:
                return None
    return None


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
