import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from segformer import machine


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setattr(machine, "_affinity", lambda: set(range(8)))
    (tmp_path / "proc" / "self").mkdir(parents=True)
    return {"cgroups": tmp_path / "cgroups", "proc": tmp_path / "proc"}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_the_affinity_mask_counts(system: dict[str, Path]) -> None:
    assert machine.available_cpus(**system) == 8
    assert machine.available_cpus() >= 1


@pytest.mark.parametrize("mount", ["", "unified"])
@pytest.mark.parametrize(
    ("own", "parent", "expected"),
    [
        ("max 100000", "max 100000", 8),
        ("250000 100000", "max 100000", 2),
        ("max 100000", "300000 100000", 3),
        ("20000 100000", "300000 100000", 1),
        ("1600000 100000", "max 100000", 8),
        ("nonsense", "", 8),
    ],
)
def test_quota_of_version_2(
    system: dict[str, Path], mount: str, own: str, parent: str, expected: int
) -> None:
    write(system["proc"] / "self" / "cgroup", "0::/jobs/one\n")
    write(system["cgroups"] / mount / "jobs" / "one" / "cpu.max", own + "\n")
    write(system["cgroups"] / mount / "jobs" / "cpu.max", parent + "\n")
    assert machine.available_cpus(**system) == expected


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("quota", "expected"), [(-1, 8), (400000, 4), (50000, 1)])
def test_quota_of_version_1(
    system: dict[str, Path], controllers: str, quota: int, expected: int
) -> None:
    write(system["proc"] / "self" / "cgroup", f"4:memory:/a\n3:{controllers}:/docker/abc\n0::/\n")
    # The mount is the container's own group, and the path that of the host
    write(system["cgroups"] / controllers / "cpu.cfs_quota_us", f"{quota}\n")
    write(system["cgroups"] / controllers / "cpu.cfs_period_us", "100000\n")
    assert machine.available_cpus(**system) == expected


def test_idle_cpus(system: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cpus", lambda: 7)
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 100)
    clock, own = [10.0], [1.0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(machine.time, "process_time", lambda: own[0])
    stat = system["proc"] / "stat"
    write(stat, "cpu 0 0 0 0\ncpu0 100 0 0 500 9 0 0 0 0 0\ncpu9 0 0 0 0 0 0 0 0 0 0\n")
    meter = machine.IdleMeter(system["proc"])
    write(stat, "cpu 0 0 0 0\ncpu0 150 60 40 900 99 5 5 140 0 0\ncpu9 900 0 0 0 0 0 0 0 0 0\n")
    assert meter.idle_cpus() == 7  # too early to know
    clock[0], own[0] = 12.0, 1.5
    assert meter.idle_cpus() == pytest.approx(8 - (3.0 - 0.5) / 2)
    clock[0] = 12.1
    assert meter.idle_cpus() == pytest.approx(8 - (3.0 - 0.5) / 2)
    clock[0] = 14.0
    assert meter.idle_cpus() == 7  # the others have stopped
    stat.unlink()
    clock[0] = 16.0
    assert meter.idle_cpus() == 7


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Eight threads, eight CPUs, and nothing set by the user."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "_affinity", lambda: set(range(8)))
    monkeypatch.setattr(machine, "available_cpus", lambda: 8)
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("idle", "expected"), [(8.0, 8), (7.7, 8), (4.9, 5), (0.1, 1), (-12.0, 1)])
def test_as_many_threads_as_idle_cpus(
    threads: None, monkeypatch: pytest.MonkeyPatch, idle: float, expected: int
) -> None:
    monkeypatch.setattr(machine.IdleMeter, "idle_cpus", lambda self: idle)
    with machine.idle_cpus_only():
        assert torch.get_num_threads() == expected
        with machine.idle_cpus_only():
            assert torch.get_num_threads() == expected
        seen = []

        def elsewhere() -> None:
            with machine.idle_cpus_only():
                seen.append(torch.get_num_threads())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert seen == [expected]
    assert torch.get_num_threads() == 8


def test_the_number_of_threads_is_restored_after_an_error(
    threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.IdleMeter, "idle_cpus", lambda self: 2.0)
    with pytest.raises(ZeroDivisionError), machine.idle_cpus_only():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 8


def test_a_number_set_by_the_user_is_kept(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.IdleMeter, "idle_cpus", lambda self: 2.0)
    torch.set_num_threads(5)
    with machine.idle_cpus_only():
        assert torch.get_num_threads() == 5
    torch.set_num_threads(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with machine.idle_cpus_only():
        assert torch.get_num_threads() == 8
    machine.limit_threads()
    assert torch.get_num_threads() == 8


def test_threads_are_limited_to_what_may_be_used(
    threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.limit_threads()
    assert torch.get_num_threads() == 8
    monkeypatch.setattr(machine, "available_cpus", lambda: 3)
    machine.limit_threads()
    assert torch.get_num_threads() == 3


MEMINFO = "MemTotal:  16000000 kB\nMemAvailable:  8000000 kB\nHugePages_Total:  0\n"


def test_memory_without_control_groups(system: dict[str, Path]) -> None:
    assert machine.available_memory(**system) is None
    write(system["proc"] / "meminfo", MEMINFO)
    assert machine.available_memory(**system) == 8_000_000 * 1024


@pytest.mark.parametrize(
    ("limit", "used", "inactive", "expected"),
    [
        (5_000_000, 2_000_000, 500_000, 3_500_000),  # files in memory can be dropped
        (5_000_000, 7_000_000, 0, 0),
        ("max", 2_000_000, 0, 8_000_000 * 1024),
        (2**63 - 4096, 2_000_000, 0, 8_000_000 * 1024),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_memory_limits(
    system: dict[str, Path],
    version: int,
    limit: int | str,
    used: int,
    inactive: int,
    expected: int,
) -> None:
    write(system["proc"] / "meminfo", MEMINFO)
    text = "0::/jobs/one\n" if version == 2 else "4:memory:/jobs/one\n0::/\n"
    write(system["proc"] / "self" / "cgroup", text)
    group = system["cgroups"] / ("" if version == 2 else "memory") / "jobs"  # above its own
    names = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
    write(group / f"memory.{names[0]}", f"{limit}\n")
    write(group / f"memory.{names[1]}", f"{used}\n")
    prefix = "" if version == 2 else "total_"
    write(group / "memory.stat", f"anon 3\n{prefix}inactive_file {inactive}\n")
    assert machine.available_memory(**system) == expected
