"""Memory is that of the container where it has a limit, of the machine otherwise. The files are hand-made."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.capacity import capacity
from controller.footprint import Claim, Footprint
from llamesh.kit.machine_memory import MachineMemory, RecentMemory, machine_memory

GIB = 1 << 30


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, proc__meminfo=f"MemTotal: {16 << 20} kB\nMemFree: 1 kB\nMemAvailable: {8 << 20} kB\n")
    return tmp_path


def test_a_machine_without_limits_offers_all_its_memory(root: Path) -> None:
    assert machine_memory(root) == MachineMemory(16 * GIB, 8 * GIB)


def test_a_limit_of_the_second_kind_counts_without_pages_that_can_be_given_back(root: Path) -> None:
    write(root, proc__self__cgroup="0::/box\n")
    folder = root / "sys/fs/cgroup/box"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{4 * GIB}\n")
    (folder / "memory.current").write_text(f"{3 * GIB}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {GIB // 2}\nactive_file {GIB // 2}\n")
    assert machine_memory(root) == MachineMemory(4 * GIB, 2 * GIB)


def test_a_limit_of_the_first_kind_counts_and_no_limit_does_not(root: Path) -> None:
    write(root, proc__self__cgroup="3:cpu,cpuacct:/\n2:memory:/pod/box\n")
    folder = root / "sys/fs/cgroup/memory/pod"
    (folder / "box").mkdir(parents=True)
    for directory, limit in ((folder, 2 * GIB), (folder / "box", 9223372036854771712)):
        (directory / "memory.limit_in_bytes").write_text(str(limit))
        (directory / "memory.usage_in_bytes").write_text(str(GIB))
        (directory / "memory.stat").write_text("total_inactive_file 0\n")
    assert machine_memory(root) == MachineMemory(2 * GIB, GIB)


def test_inside_a_container_the_mount_is_the_own_group(root: Path) -> None:
    write(root, proc__self__cgroup="0::/host/path/that/is/not/here\n")
    folder = root / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(str(GIB))
    (folder / "memory.current").write_text(str(2 * GIB))
    (folder / "memory.stat").write_text("")
    assert machine_memory(root) == MachineMemory(GIB, 0)


def test_memory_is_not_read_again_at_once() -> None:
    first, second = MachineMemory(16 * GIB, 8 * GIB), MachineMemory(16 * GIB, 4 * GIB)
    reads = iter([first, second])
    moments = iter([0.0, 0.2, 0.25])
    memory = RecentMemory(lambda: next(moments), read=lambda: next(reads))
    assert [memory.read() for _ in range(3)] == [first, first, second]


def test_capacity_reports_promised_free_and_shared_memory() -> None:
    claims = [Claim(Footprint("m1", GIB, 4 * GIB), 2, 1), Claim(Footprint("m2", 2 * GIB), 1, 1)]
    (node,) = capacity(MachineMemory(16 * GIB, 12 * GIB), GIB, claims).nodes
    assert (node.total_bytes, node.available_bytes) == (16 * GIB, 12 * GIB)
    assert node.promised_bytes == 8 * GIB
    assert node.free_bytes == 12 * GIB - GIB - 4 * GIB - GIB
    assert {each.model_uuid: each.shared_bytes for each in node.shared_weights} == {"m1": 4 * GIB}


@pytest.mark.parametrize(("limit", "total"), [(0, 16), (4, 4), (32, 16)])
def test_a_limit_of_the_settings_counts_if_it_is_less_than_the_memory(root: Path, limit: int, total: int) -> None:
    memory = RecentMemory(lambda: 0.0, limit * GIB, lambda: machine_memory(root))
    assert memory.read() == MachineMemory(total * GIB, 8 * GIB)
