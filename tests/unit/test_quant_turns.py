"""Which job runs next: users take turns, and interrupted jobs go on first."""

from __future__ import annotations

from dataclasses import dataclass

from services.quant.turns import next_job


@dataclass
class Waiting:
    """The fields of a job that decide."""

    job_id: str
    requester_uid: str
    state: str = "QUEUED"


def test_a_user_with_one_job_waits_for_one_job_of_another_at_most() -> None:
    active = [*(Waiting(f"m{number}", "mal") for number in range(500)), Waiting("v", "vic")]
    served: dict[str, int] = {}
    order = []
    for turn in range(1, 4):
        job = next_job(active, order, served)
        assert job is not None
        served[job.requester_uid] = turn
        order.append(job.job_id)
    assert order == ["m0", "v", "m1"]


def test_an_interrupted_job_goes_on_before_others() -> None:
    active = [Waiting("a", "ada"), Waiting("b", "bob", "RUNNING")]
    found = next_job(active, [], {"bob": 7})
    assert found is active[1]


def test_jobs_that_wait_for_their_next_try_take_turns_too() -> None:
    active = [*(Waiting(f"a{number}", "ada", "RUNNING") for number in range(100)), Waiting("b", "bob")]
    begun = {f"a{number}" for number in range(100)}
    found = next_job(active, [], {"ada": 7}, begun)
    assert found is active[-1]


def test_no_job_runs_twice() -> None:
    assert next_job([Waiting("a", "ada")], ["a"], {}) is None
