"""A model that is put to use while it is deleted is either used or deleted, in a whole mesh."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.mesh.running import RunningMesh
from tests.mesh.test_reference_calls import reasons


@pytest.mark.parametrize("pause", [0.0, 0.005, 0.01, 0.02, 0.03, 0.05])
def test_of_a_call_that_serves_and_one_that_deletes_exactly_one_succeeds(mesh: RunningMesh, pause: float) -> None:
    name = f"raced{pause}"
    mesh.add_model(name, f"{name}.gguf")
    with ThreadPoolExecutor(1) as thread:
        serving = thread.submit(mesh.call, "POST", "/serve", json={"model_uuid": name})
        time.sleep(pause)
        deleted = mesh.call("DELETE", f"/models/{name}")
        served = serving.result()
    assert (served.status_code == 200) is not (deleted.status_code == 200), (served.text, deleted.text)
    if served.status_code == 200:
        assert reasons(deleted.json()) == ["MODEL_IN_USE"]
        assert mesh.call("DELETE", f"/stop/{served.json()['server_uuid']}").status_code == 200
        assert mesh.call("DELETE", f"/models/{name}").status_code == 200
    else:
        assert reasons(served.json()) == ["MODEL_NOT_FOUND"]
    remaining = [each["model_uuid"] for each in mesh.call("GET", "/status").json()["servers"]]
    assert name not in remaining
