"""Trains one run without interruption and one that is killed again and again; started by a test.

Usage: killed_runs.py DATASET FOLDER WORKERS SEED. Prints the number of kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import segformer.files
from segformer import SegmentationTrainConfig, resume, train
from segformer.config import VARIANTS
from segformer.training import folder as run_folder

VARIANTS["tiny"] = {
    "hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_attention_heads": (1, 2, 3, 4),
    "decoder_hidden_size": 16,
}  # fmt: skip


def configuration(workers: int) -> SegmentationTrainConfig:
    return SegmentationTrainConfig(
        variant="tiny", crop_size=32, short_side=48, batch_size=2, accumulate_grad_batches=2,
        max_steps=14, log_every=3, checkpoint_every=2, val_every=2, keep_last=2, keep_best=2,
        num_workers=workers, precision="float32", loggers=("csv",),
    )  # fmt: skip


def in_child(work: Callable[[], object]) -> int:
    """Run a function in a child of this process; returns the child's id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_write(number: int) -> None:
    """Have this process killed in the middle of one of its writes, counted from now."""
    left = [number]

    def counted(write: Callable[..., object], half: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*arguments: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                half(*arguments)
                die()
            return write(*arguments)

        return wrapper

    def half_checkpoint(state: object, path: Path) -> None:
        save(state, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def half_line(path: Path, line: bytes) -> None:
        append(path, line[: len(line) // 2])

    save, append, rename = torch.save, run_folder.append_line, segformer.files._replace
    torch.save = counted(save, half_checkpoint)
    run_folder.append_line = counted(append, half_line)
    segformer.files._replace = counted(rename, lambda *_: None)


def main(dataset: Path, folder: Path, workers: int, seed: int) -> None:
    chance = random.Random(seed)
    whole, broken = folder / "whole", folder / "broken"
    config = configuration(workers)
    _, status = os.waitpid(in_child(lambda: train(dataset, whole, config)), 0)
    assert status == 0, "the run without interruption failed"
    for kills in range(80):
        at_write, delay = chance.randint(2, 30), chance.uniform(0.05, 2.5)
        by_clock = kills % 3 == 2

        def work(write: int = 0 if by_clock else at_write) -> None:
            kill_at_write(write)
            if (broken / "config.yaml").exists():
                resume(broken)
            else:
                train(dataset, broken, config)

        child = in_child(work)
        if by_clock:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == 0:
            print(kills)
            return
        assert os.WIFSIGNALED(status), "a run failed on its own"
    raise SystemExit("the run never ended")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
