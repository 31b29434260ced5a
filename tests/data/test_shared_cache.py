from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segformer.data.shared_cache import SharedCache, stored_size

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shares memory by descriptors")


def test_entries_are_returned_as_stored() -> None:
    cache = SharedCache(5, 10**6)
    entries = [np.arange(7), (np.zeros((3, 4), np.uint8), {2: np.ones((5, 1, 3), np.float32)}), "a"]
    for index, entry in enumerate(entries):
        cache.put(index + 1, entry)
    assert len(cache) == 3
    assert cache.get(0) is None
    assert np.array_equal(cache.get(1), entries[0])
    mask, images = cache.get(2)
    assert np.array_equal(mask, entries[1][0])
    assert np.array_equal(images[2], entries[1][1][2])
    assert cache.get(3) == "a"
    assert sum(map(stored_size, entries)) == pytest.approx(cache.used, abs=200)
    assert not mask.flags.writeable
    assert np.shares_memory(mask, cache.get(2)[0])  # views, not copies


def test_what_does_not_fit_is_not_stored() -> None:
    cache = SharedCache(4, 3000)
    for index in range(4):
        cache.put(index, np.full(1000, index, np.uint8))
    assert len(cache) == 2
    assert cache.is_full
    assert cache.get(2) is None
    assert (cache.get(1) == 1).all()


def test_the_first_of_two_entries_stays() -> None:
    cache = SharedCache(1, 3000)
    cache.put(0, np.zeros(10))
    used = cache.used
    cache.put(0, np.ones(10))
    assert (cache.get(0) == 0).all()
    assert cache.used == used


WORKERS = """
import multiprocessing, os, signal, sys, time
import numpy as np
from segformer.data.shared_cache import SharedCache

def work(cache, index):
    cache.put(index, np.full(5_000_000, index, np.uint8))
    maps = [line.split() for line in open("/proc/self/maps") if "segformer-cache" in line]
    print(index, *sorted({(words[1], words[4]) for words in maps}), flush=True)
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    cache = SharedCache(3, 20_000_000)
    for index in (1, 2):
        process = context.Process(target=work, args=(cache, index))
        process.start()
        process.join()
    cache.put(0, np.zeros(3))  # the lock of the process that was killed is free
    maps = [line.split() for line in open("/proc/self/maps") if "segformer-cache" in line]
    print(0, *sorted({(words[1], words[4]) for words in maps}), flush=True)
    print([int(cache.get(index)[-1]) for index in range(3)], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_processes_map_the_same_memory(tmp_path: Path, context: str) -> None:
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    shared = Path("/dev/shm")
    before = set(shared.iterdir()) if shared.is_dir() else set()
    done = subprocess.run(
        [sys.executable, str(script), context], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    *maps, values = done.stdout.splitlines()
    assert values == "[0, 1, 2]"
    inodes = [line.split(" ", 1)[1] for line in maps]
    assert len(inodes) == 3
    assert len(set(inodes)) == 1  # the same file in each process, once
    assert inodes[0].count("(") == 1
    assert "'rw-s'" in inodes[0]
    after = set(shared.iterdir()) if shared.is_dir() else set()
    assert not [file for file in after - before if "segformer" in file.name]
