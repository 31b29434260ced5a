"""Losses that go wrong, full disks and too little memory: what is kept and what is said."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import draw_dataset
from segformer import SegFormer, SegmentationTrainConfig, resume, train
from segformer.training import divergence, full_disk, memory
from segformer.training.folder import RunFolder
from segformer.training.full_disk import DiskFull, is_full_disk
from segformer.training.segmentation import Segmentation

QUICK = {
    "variant": "tiny", "crop_size": 32, "short_side": 48, "batch_size": 2, "max_steps": 8,
    "num_workers": 0, "log_every": 1, "checkpoint_every": 2, "val_every": 9999,
    "precision": "float32", "loggers": ("csv",),
}  # fmt: skip


def config(**changes: object) -> SegmentationTrainConfig:
    return SegmentationTrainConfig(**{**QUICK, **changes})


def losses_of(*values: float) -> Callable[..., torch.Tensor]:
    """A loss whose n-th value is multiplied by the n-th number, 1 after the last."""
    factors = iter(values)
    original = Segmentation.loss

    def loss(self: Segmentation, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return original(self, logits, targets) * next(factors, 1.0)

    return loss


@pytest.mark.parametrize(
    ("factor", "said"), [(float("nan"), "the loss is nan"), (1e5, r"the loss is \d+[.\de+]*")]
)
def test_a_loss_that_goes_wrong_keeps_the_last_good_weights(
    tmp_path: Path,
    tiny_variant: str,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    said: str,
) -> None:
    dataset, run = draw_dataset(tmp_path / "shapes"), tmp_path / "run"
    monkeypatch.setattr(Segmentation, "loss", losses_of(1, 1, 1, 1, 1, factor))
    with pytest.raises(ValueError, match=said + " at step 5; use a smaller --lr") as caught:
        train(dataset, run, config())
    assert f"{run / 'last'} is the model after step 4" in str(caught.value)
    checkpoint = torch.load(run / "resume.ckpt", weights_only=True)
    average = {n.removeprefix("module."): t for n, t in checkpoint["average"].items()}
    saved = SegFormer.from_pretrained(run / "last").state_dict()
    assert all(torch.equal(tensor, average[name]) for name, tensor in saved.items())


def test_the_batch_is_named(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gradients accumulated, the batch with the wrong loss and not the other."""
    dataset = draw_dataset(tmp_path / "shapes")
    seen: list[str] = []
    read = Segmentation.crops

    def crops(self: Segmentation, model: SegFormer, processes: int) -> object:
        made = read(self, model, processes)
        crop = made.crop
        made.crop = lambda index, rng: (seen.append(made.name(index)), crop(index, rng))[1]
        return made

    monkeypatch.setattr(Segmentation, "crops", crops)
    monkeypatch.setattr(Segmentation, "loss", losses_of(1, 1, 1, float("nan")))
    with pytest.raises(ValueError) as caught:
        train(dataset, tmp_path / "run", config(accumulate_grad_batches=2))
    named = str(caught.value).split("this batch: ")[1].split(". There")[0].split(", ")
    assert named == seen[6:8]  # the fourth batch of two


def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, run = draw_dataset(tmp_path / "shapes"), tmp_path / "run"
    from segformer.training.loop import TrainingLoop

    step = TrainingLoop._step

    def breaking(self: TrainingLoop, batches: object) -> float:
        loss = step(self, batches)
        if self.state.step == 3:
            next(self.model.parameters()).data[0] = float("inf")
        return loss

    monkeypatch.setattr(TrainingLoop, "_step", breaking)
    with pytest.raises(ValueError, match="the weights are not finite after step 4.* after step 2"):
        train(dataset, run, config())
    for file in (run / "last").glob("*.safetensors"):
        assert all(bool(t.isfinite().all()) for t in load_file(file).values())
    assert RunFolder(run).load_checkpoint()["state"]["step"] == 2


def test_what_counts_as_diverging() -> None:
    infinite = float("inf")
    assert divergence.is_diverging(infinite, infinite)
    assert not divergence.is_diverging(1e9, infinite)  # nothing to compare with
    assert divergence.is_diverging(1001, 0.2)
    assert not divergence.is_diverging(999, 0.2)
    assert not divergence.is_diverging(5000, 10)
    assert not divergence.is_diverging(-3.0, -4.0)  # losses of users may be negative


WRITES = {
    "checkpoint": ("torch.save", 3),
    "model": ("segformer.files._replace", 14),
    "metrics": ("segformer.training.folder.append_line", 4),
    "record": ("segformer.files._replace", 1),
}


@pytest.mark.parametrize("place", WRITES)
def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    dataset, whole, run = draw_dataset(tmp_path / "shapes"), tmp_path / "whole", tmp_path / "run"
    train(dataset, whole, config())
    target, number = WRITES[place]
    left = [number]
    with monkeypatch.context() as patch:
        module, _, name = target.rpartition(".")
        original = getattr(sys.modules[module], name)

        def failing(*arguments: object) -> object:
            left[0] -= 1
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments)

        patch.setattr(target, failing)
        with pytest.raises(DiskFull, match=r"no space left on the disk: .* free some space"):
            train(dataset, run, config())
    assert not list(run.rglob(".partial-*"))
    if (run / "resume.ckpt").exists():
        resume(run)
        rows = [
            [{k: v for k, v in row.items() if k not in ("minutes", "images_per_s")} for row in rows]
            for rows in (RunFolder(folder).read_metrics() for folder in (whole, run))
        ]
        assert rows[0] == rows[1]
        final = "last/model.safetensors"
        assert (run / final).read_bytes() == (whole / final).read_bytes()
    else:
        train(dataset, run, config())


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """Files may not grow beyond a limit: PyTorch, safetensors and Python report it."""
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
import torch
from pathlib import Path
from safetensors.torch import save_file
from segformer.files import whole_file
from segformer.training.full_disk import append_line, is_full_disk
folder = Path({str(tmp_path)!r})
big = {{"a": torch.zeros(100_000)}}
writes = {{
    "torch": lambda path: torch.save(big, path),
    "safetensors": lambda path: save_file(big, path),
    "text": lambda path: path.write_bytes(bytes(300_000)),
}}
for name, write in writes.items():
    try:
        with whole_file(folder / (name + ".bin")) as partial:
            write(partial)
    except Exception as error:
        assert is_full_disk(error), repr(error)
    else:
        raise SystemExit(name + " was written")
append_line(folder / "lines", bytes(199_990))
try:
    append_line(folder / "lines", bytes(100))
except OSError as error:
    assert is_full_disk(error), repr(error)
assert (folder / "lines").stat().st_size == 199_990
assert [path.name for path in folder.iterdir()] == ["lines"]
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_other_errors_are_no_full_disk() -> None:
    assert not is_full_disk(OSError(errno.EACCES, "Permission denied"))
    assert not is_full_disk(RuntimeError("os error 13"))
    assert is_full_disk(RuntimeError("I/O error: No space left on device (os error 28)"))
    with pytest.raises(KeyError), full_disk.explaining_full_disk(Path("run"), Path("none")):
        raise KeyError("a")


def test_too_little_memory_says_what_to_change(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device on which each image takes 1 GiB beside a fixed 0.5, and 5 are free."""
    dataset = draw_dataset(tmp_path / "shapes", train=16)
    original = Segmentation.loss

    def loss(self: Segmentation, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(logits) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(self, logits, targets)

    def measured(fabric: object, task: object, model: object, size: int) -> int:
        return int((0.5 + size) * memory.GIB)

    monkeypatch.setattr(Segmentation, "loss", loss)
    monkeypatch.setattr(memory, "measure_step", measured)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 5 * memory.GIB)
    with pytest.raises(MemoryError) as caught:
        train(dataset, tmp_path / "run", config(batch_size=8, accumulate_grad_batches=3))
    assert str(caught.value) == (
        "out of memory at step 0: batch 8 at crop 32 needs about 8.50 GiB, 5.00 are free: use "
        "--batch-size 4 --accumulate-grad-batches 6"
    )
    monkeypatch.setattr(memory, "free_bytes", lambda device: memory.GIB)

    def too_much(*arguments: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory, "measure_step", too_much)
    with pytest.raises(MemoryError, match="not even one image at crop 64 fits, 1.00 GiB are free"):
        train(dataset, tmp_path / "second", config(batch_size=8, crop_size=64))


@pytest.mark.parametrize(("free", "size"), [(5.0, 4), (100.0, 16), (1.7, 1)])
def test_the_largest_batch_size_that_fits(
    tmp_path: Path,
    tiny_variant: str,
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    size: int,
) -> None:
    """1 GiB per image and 0.5 fixed; no more than the training images."""
    dataset = draw_dataset(tmp_path / "shapes", train=20)
    tried: list[int] = []

    def measured(fabric: object, task: object, model: object, size: int) -> int:
        tried.append(size)
        return int((0.5 + size) * memory.GIB)

    monkeypatch.setattr(memory, "measure_step", measured)
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(free * memory.GIB))
    train(dataset, tmp_path / "run", config(batch_size="auto", max_steps=None, epochs=1))
    _, recorded = RunFolder(tmp_path / "run").read_recipe()
    assert recorded.batch_size == size
    assert recorded.max_steps == -(-20 // size)
    assert max(tried) <= 16
    assert all((0.5 + number) <= 0.9 * free for number in tried)  # none that was expected to fail


def test_memory_of_steps_is_measured(tmp_path: Path, tiny_variant: str) -> None:
    """Activations of more images take more, and the weights are not changed by measuring."""
    dataset = draw_dataset(tmp_path / "shapes", size=(128, 128), train=16)
    task = Segmentation(dataset, config(crop_size=128, short_side=128))
    model = task.build_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    from segformer.training.processes import Processes

    fabric = Processes(config()).fabric
    small, large = (memory.measure_step(fabric, task, model, size) for size in (2, 16))
    assert large > 2 * small > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_real_free_memory_bounds_the_batch(tmp_path: Path, tiny_variant: str) -> None:
    dataset = draw_dataset(tmp_path / "shapes", train=4)
    train(dataset, tmp_path / "run", config(batch_size="auto", max_steps=2))
    assert RunFolder(tmp_path / "run").read_recipe()[1].batch_size == 4
