"""What the benchmarks share: turns, medians, floors, peaks of memory, the machine, a table, JSON.

Contenders run in turns in one process, so that what else the machine does meets all alike. Peak
memory is measured in a process for each: what running adds above what stood there before it.
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
    """One piece of work, and what each contender took for it.

    Attributes:
        work: What is done.
        seconds: Median of each contender; the first is the peer that ratios are to.
        ours: Which contender this package is.
        floor: Seconds of the least work, at the rates measured on this machine.
        peak_mib: Memory that each adds while running.
        notes: What else was seen, such as differences of outputs.
    """

    work: str
    seconds: dict[str, float]
    ours: str
    floor: float | None = None
    peak_mib: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times faster ours is than the first."""
        return next(iter(self.seconds.values())) / self.seconds[self.ours]


def in_turns(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each.

    In each turn a contender runs three times and two of them count: the first finds caches and
    free memory as another contender left them, which is nobody's everyday.
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
    """Options of what a benchmark shares the machine with."""
    parser.add_argument(
        "--neighbor", action="store_true", help="beside a process that keeps all CPUs busy"
    )
    parser.add_argument(
        "--quota", type=float, metavar="CPUS", help="with a quota of its control group"
    )


def loaded_name(name: str, neighbor: bool, quota: float | None) -> str:
    """Name of the results of a benchmark under this load."""
    return name + "_neighbor" * neighbor + (f"_quota_{quota:g}" if quota is not None else "")


@contextmanager
def load(neighbor: bool, quota: float | None) -> Iterator[None]:
    """A neighbor that multiplies matrices on all CPUs; a quota, or CPUs by affinity."""
    process = group = None
    try:
        if quota is not None:
            group = _set_quota(quota)
        if neighbor:
            code = (
                "import os, torch; a = torch.randn(1024, 1024)\n"
                f"while os.getppid() == {os.getpid()}: a @ a"  # never longer than the benchmark
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
    """The control group this process was put in, or None where its affinity was set instead."""
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
    """MiB that each adds while it runs: the calling script again, in a process for each."""
    found = {}
    for name in names:
        words = [sys.executable, sys.argv[0], *arguments, PEAK_OF, name]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        found[name] = float(done.stdout.split()[-1])
    return found


def print_peak(run: Callable[[], Any], repeats: int = 2) -> None:
    """Print what running adds to this process at its highest, MiB; on Linux with glibc."""
    run()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before does not hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is now
    before = _status("VmRSS")
    for _ in range(repeats):
        run()
    print((_status("VmHWM") - before) / MIB)


def _status(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{key}:")[1].split()[0])


@cache
def product_rate(dtype: torch.dtype) -> float:
    """Multiply-adds a second, times two: the best of a large product's kernels here."""
    a, b = torch.randn(2, 2048, 2048, dtype=dtype)
    maps, filters = a.view(1, 64, 32, 2048).permute(0, 3, 1, 2), b[:, :, None, None]
    with torch.inference_mode():
        seconds = in_turns({"linear": lambda: a @ b, "conv": lambda: F.conv2d(maps, filters)}, 5)
    return 2 * 2048**3 / min(seconds.values())


@cache
def copy_rate() -> float:
    """Bytes a second that a copy of 256 MiB reads and writes."""
    source, target = torch.zeros(2, 64 * MIB)
    return 2 * 256 * MIB / in_turns({"copy": lambda: target.copy_(source)}, 5)["copy"]


def operations(run: Callable[[], Any]) -> int:
    """Multiply-adds, times two, that a run takes."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


def like_trained(model: nn.Module) -> nn.Module:
    """Random statistics for the BatchNorms, which fresh models leave at 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and isinstance(module.running_mean, Tensor):
            nn.init.normal_(module.running_mean, std=0.1)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def machine() -> dict[str, Any]:
    """What this ran on."""
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
    """Print rows as they come, and write them to ``benchmarks/results/NAME.json``."""
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
