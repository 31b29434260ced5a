"""Common parts of the benchmarks: timing, floors, peak memory, machine description, reports.

The contenders run alternately in one process, so that other load on the machine affects all of
them in the same way. The peak memory of each contender is measured in its own process: the highest
memory use during the run minus the memory use before the run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from segformer.machine import available_cpus

MIB = 1 << 20
PEAK_OF = "--peak-of"


@dataclass
class Row:
    """One task, with the results of each contender.

    Attributes:
        work: Description of the task.
        seconds: Median time of each contender. The first contender is the reference for ratios.
        ours: Name of the contender that is this package.
        floor: Lower bound of the time in seconds, from the speeds measured on this machine.
        peak_mib: Peak memory in MiB that each contender adds while it runs.
        notes: Other results, such as differences between outputs.
    """

    work: str
    seconds: dict[str, float]
    ours: str
    floor: float | None = None
    peak_mib: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Time of the first contender divided by the time of this package."""
        return next(iter(self.seconds.values())) / self.seconds[self.ours]


def in_turns(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Run the contenders alternately and return the median time of each in seconds.

    In each round a contender runs three times, and only the last two runs are measured. In the
    first run, caches and free memory are still in the state that another contender left. The
    first round is not measured at all.

    Args:
        contenders: Functions to measure, by name.
        rounds: Number of measured rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, run in contenders.items():
            for j in range(3):
                began = time.perf_counter()
                run()
                if i and j:
                    times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that simulate other load on the machine."""
    parser.add_argument(
        "--neighbor", action="store_true", help="run next to a process that uses all CPUs"
    )
    parser.add_argument(
        "--quota", type=float, metavar="CPUS", help="limit the CPU time with a control group"
    )


def loaded_name(name: str, neighbor: bool, quota: float | None) -> str:
    """Return the name of the results file of a benchmark under this load."""
    return name + "_neighbor" * neighbor + (f"_quota_{quota:g}" if quota is not None else "")


@contextmanager
def load(neighbor: bool, quota: float | None) -> Iterator[None]:
    """Start a process that multiplies matrices on all CPUs, and set a CPU quota or affinity."""
    process = group = None
    try:
        if quota is not None:
            group = _set_quota(quota)
        if neighbor:
            code = (
                "import os, torch; a = torch.randn(1024, 1024)\n"
                f"while os.getppid() == {os.getpid()}: a @ a"  # ends with the benchmark
            )
            process = subprocess.Popen([sys.executable, "-c", code])
            time.sleep(5)  # until it has started
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()
        if group is not None:
            (group.parent / "cgroup.procs").write_text(str(os.getpid()))
            group.rmdir()


def _set_quota(cpus: float) -> Path | None:
    """Move this process to a control group and return it; None if the affinity was set instead."""
    period = 100_000
    for root, name, text in (
        (Path("/sys/fs/cgroup"), "cpu.max", f"{round(cpus * period)} {period}"),
        (Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us", str(round(cpus * period))),
    ):
        group = root / f"segformer-benchmark-{os.getpid()}"
        if not (root / "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
            (group / name).write_text(text)
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            if group.exists():
                group.rmdir()
        else:
            return group
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: max(1, int(cpus))])
    return None


def peaks(names: list[str], *arguments: str) -> dict[str, float]:
    """Run the script again in one process per contender; return the peak memory of each in MiB."""
    found = {}
    for name in names:
        words = [sys.executable, sys.argv[0], *arguments, PEAK_OF, name]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        found[name] = float(done.stdout.split()[-1])
    return found


def print_peak(run: Callable[[], Any], repeats: int = 2) -> None:
    """Print the peak memory in MiB that ``run`` adds to this process. Requires Linux with glibc."""
    run()
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory, so that new memory is counted
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _status("VmRSS")
    for _ in range(repeats):
        run()
    print((_status("VmHWM") - before) / MIB)


def _status(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{key}:")[1].split()[0])


@cache
def product_rate(dtype: torch.dtype) -> float:
    """Measure the speed of a large matrix product with the fastest kernel, in operations/s."""
    a, b = torch.randn(2, 2048, 2048, dtype=dtype)
    maps, filters = a.view(1, 64, 32, 2048).permute(0, 3, 1, 2), b[:, :, None, None]
    with torch.inference_mode():
        seconds = in_turns({"linear": lambda: a @ b, "conv": lambda: F.conv2d(maps, filters)}, 5)
    return 2 * 2048**3 / min(seconds.values())


@cache
def copy_rate() -> float:
    """Measure the speed of a 256 MiB copy, in bytes/s; reads and writes both count."""
    source, target = torch.zeros(2, 64 * MIB)
    return 2 * 256 * MIB / in_turns({"copy": lambda: target.copy_(source)}, 5)["copy"]


def operations(run: Callable[[], Any]) -> int:
    """Count the operations of a run: two per multiply-add."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


def like_trained(model: nn.Module) -> nn.Module:
    """Set the BatchNorm statistics, which are 0 and 1 in new models, to random values."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and isinstance(module.running_mean, Tensor):
            nn.init.normal_(module.running_mean, std=0.1)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def machine() -> dict[str, Any]:
    """Describe this machine."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        text = information.read_text()
        cpu = text.split("model name")[1].split(":")[1].split("\n")[0].strip()
        for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2"):
            if f" {flag} " in text:
                cpu += f", {flag}"
                break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "available_cpus": available_cpus(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "float32_gflops": round(product_rate(torch.float32) / 1e9),
        "bfloat16_gflops": round(product_rate(torch.bfloat16) / 1e9),
        "copy_gb_s": round(copy_rate() / 1e9, 1),
    }


def report(name: str, rows: Iterable[Row]) -> None:
    """Print each row when it is ready, and write all to ``benchmarks/results/NAME.json``."""
    records = []
    for row in rows:
        records.append({**asdict(row), "ratio": row.ratio})
        floor = f"  floor {1000 * row.floor:.1f} ms" if row.floor else ""
        print(f"\n{row.work}: {row.ratio:.1f} x{floor}")
        for contender, seconds in row.seconds.items():
            cells = [f"{contender:28}", f"{1000 * seconds:10.1f} ms"]
            cells.append(f"{next(iter(row.seconds.values())) / seconds:6.2f} x")
            if row.floor:
                cells.append(f"{seconds / row.floor:6.1f} x floor")
            if contender in row.peak_mib:
                cells.append(f"{row.peak_mib[contender]:8.1f} MiB")
            print("  " + "  ".join(cells))
        for key, value in row.notes.items():
            print(f"  {key}: {value}", flush=True)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    record = {"machine": machine(), "rows": records}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{record['machine']}")
