"""How many CPUs and how much memory this process may use, and how many CPUs others leave idle.

PyTorch starts a thread per CPU for each operation and ends the operation when the last of them is
done. With fewer free CPUs than threads, each of the hundreds of operations of a forward pass waits
until the scheduler has run all threads: several times slower than one thread alone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Lock

_SHORTEST_SAMPLE = 0.2
"""Seconds over which the load is measured at least: the kernel counts in hundredths."""


def available_cpus(*, cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int:
    """CPUs this process may use: its affinity mask, and the quotas of its control groups.

    Args:
        cgroups: Where control groups are mounted, of version 1 or 2.
        proc: Where the kernel's process information is mounted.

    Returns:
        At least 1. A quota of 2.5 CPUs counts as 2.
    """
    return max(1, math.floor(min(len(_affinity()), _quota(cgroups, proc))))


def _affinity() -> set[int]:
    """Numbers of the CPUs on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota(cgroups: Path, proc: Path) -> float:
    """CPUs that the control groups of this process allow, those above them included."""
    groups = _groups("cpu", cgroups, proc)
    return min((_quota_v2(g) if is_v2 else _quota_v1(g) for g, is_v2 in groups), default=math.inf)


def _groups(controller: str, cgroups: Path, proc: Path) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's control groups, those above them included; whether version 2."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            mounts = (cgroups, cgroups / "unified")
        elif controller in controllers.split(","):
            mounts = (cgroups / controllers, cgroups / controller)
        else:
            continue
        below_mount = Path(group.lstrip("/"))
        for mount in mounts:
            # In a container the mount can be the group itself, and the path that of the host
            for folder in (below_mount, *below_mount.parents):
                yield mount / folder, controllers == ""


def _quota_v2(folder: Path) -> float:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return _ratio(quota, period)


def _quota_v1(folder: Path) -> float:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float:
    """Infinite where there is no quota: "max", -1 or no such file."""
    try:
        allowed = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return math.inf
    return allowed if allowed > 0 else math.inf


def available_memory(
    *, cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")
) -> int | None:
    """Bytes of memory that this process can still take without swapping or being killed.

    Files that the system keeps in memory count as available, because it drops them when needed.

    Args:
        cgroups: Where control groups are mounted, of version 1 or 2.
        proc: Where the kernel's process information is mounted.

    Returns:
        The least of what the system has available and what the limits of the control groups and
        of the address space leave; None where the system does not say, as on other systems than
        Linux.
    """
    available = _fields(proc / "meminfo").get("MemAvailable:")
    if available is None:
        return None
    left = [1024 * available]
    for group, is_v2 in _groups("memory", cgroups, proc):
        names = ("max", "current") if is_v2 else ("limit_in_bytes", "usage_in_bytes")
        limit, used = (_read(group / f"memory.{name}").strip() for name in names)
        if limit.isdecimal() and used.isdecimal():  # without a limit, the file says "max"
            statistics = _fields(group / "memory.stat")
            inactive = statistics.get("inactive_file" if is_v2 else "total_inactive_file", 0)
            left.append(max(0, int(limit) - max(0, int(used) - inactive)))
    import resource  # not on Windows, which has no /proc either

    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
    if address_space != resource.RLIM_INFINITY:
        taken = 1024 * _fields(proc / "self" / "status").get("VmSize:", 0)
        left.append(max(0, address_space - taken))
    return min(left)


def _fields(path: Path) -> dict[str, int]:
    """Names and numbers of a file with one of each in a line."""
    lines = (line.split() for line in _read(path).splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class IdleMeter:
    """How many CPUs other processes leave idle, measured between two calls.

    Args:
        proc: Where the kernel's process information is mounted; without it, as on other systems
            than Linux, all CPUs count as idle.
    """

    def __init__(self, proc: Path = Path("/proc")):
        self._proc = proc
        self._last = self._sample()
        self._idle: float | None = None

    def idle_cpus(self) -> float:
        """CPUs this process may use, less those in use by others: the mean since the last sample.

        Samples are at least 0.2 s apart; a call before that returns the previous result.
        """
        if time.perf_counter() - self._last[0] >= _SHORTEST_SAMPLE:
            now = self._sample()
            elapsed, busy, own = (new - old for new, old in zip(now, self._last, strict=True))
            self._last = now
            self._idle = min(available_cpus(), len(_affinity()) - max(0, (busy - own) / elapsed))
        if self._idle is None:
            self._idle = available_cpus()
        return self._idle

    def _sample(self) -> tuple[float, float, float]:
        """Seconds: the clock, CPU time of all processes, CPU time of this process."""
        cpus = {f"cpu{number}" for number in _affinity()}
        ticks = 0
        for line in _read(self._proc / "stat").splitlines():
            name, *fields = line.split()
            if name in cpus:
                user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
                ticks += user + nice + system + irq + softirq + steal
        busy = ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0  # ticks are Linux's alone
        return time.perf_counter(), busy, time.process_time()


class _Threads:
    """PyTorch's number of threads, lowered while inference runs in any Python thread."""

    def __init__(self) -> None:
        self._meter = IdleMeter()
        self._lock = Lock()
        self._running = 0
        self._default = self._chosen = 1

    def idle_cpus(self) -> float:
        """See `IdleMeter.idle_cpus`."""
        with self._lock:
            return self._meter.idle_cpus()

    @contextmanager
    def lowered(self) -> Iterator[None]:
        import torch

        with self._lock:  # of Python threads that run at the same time the first one decides
            if self._running == 0:
                self._default = self._chosen = torch.get_num_threads()
                if self._default > 1 and not _set_by_user(self._default):
                    self._chosen = max(1, min(self._default, round(self._meter.idle_cpus())))
            self._running += 1
            default, chosen = self._default, self._chosen
        try:
            if chosen < default:
                torch.set_num_threads(chosen)
            yield
        finally:
            if chosen < default:
                torch.set_num_threads(default)
            with self._lock:
                self._running -= 1


_threads = _Threads()


def idle_cpus_only() -> AbstractContextManager[None]:
    """Run operations of PyTorch with as many threads as there are idle CPUs, one at least.

    Afterwards the number of threads is what it was. It is never raised, and it stays as it is where
    the user has set it: by ``OMP_NUM_THREADS`` or `torch.set_num_threads`.
    """
    return _threads.lowered()


def inference_threads(*, only_idle: bool = False) -> int:
    """Threads for a runtime other than PyTorch: the CPUs that this process may use.

    Where the user has set ``OMP_NUM_THREADS``, it is that number.

    Args:
        only_idle: Leave out CPUs that other processes use now; one at least.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if only_idle:
        return max(1, min(available_cpus(), round(_threads.idle_cpus())))
    return available_cpus()


def limit_threads() -> None:
    """Lower PyTorch's number of threads to the CPUs that this process may use.

    Nothing changes where the user has set the number of threads: by ``OMP_NUM_THREADS`` or
    `torch.set_num_threads`.
    """
    import torch

    threads = torch.get_num_threads()
    if not _set_by_user(threads) and available_cpus() < threads:
        torch.set_num_threads(available_cpus())


def _set_by_user(threads: int) -> bool:
    """Whether ``threads`` is another number than PyTorch's own, which is one per CPU."""
    if {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys():
        return True
    return threads not in (len(_affinity()), available_cpus())
