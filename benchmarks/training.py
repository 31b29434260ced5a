"""Compare training for the same time with this package and with a plain transformers loop.

    python benchmarks/training.py camvid --recipe src/segformer/recipes/camvid-b0.yaml

Trains with the recipe and measures the minutes. Then trains the transformers model of the same
variant for the same number of minutes, as in the documentation of transformers:
``model(pixel_values, labels=labels).loss.backward()``. Both use the same crops in the same order,
the same batch size, optimizer, learning rate and schedule. First checks that both models give the
same logits with the same weights. Prints minutes, steps, images per second, validation mIoU and
peak memory of each.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from segformer import Predictor, SegFormer
from segformer.data.check import check_split
from segformer.data.dataset import Dataset
from segformer.data.loader import DrawSampler, TrainingCrops, crop_loader
from segformer.data.opening import open_dataset
from segformer.evaluation.evaluate import evaluate
from segformer.training.config import SegmentationTrainConfig, TrainConfig
from segformer.training.folder import RunFolder
from segformer.training.optimization import lr_factor
from segformer.training.preparation import augmentation, build_model, resolve
from segformer.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--minutes", type=float, help="internal: train only transformers")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    options = parser.parse_args()
    training = open_dataset(options.dataset, "train")
    recipe = TrainConfig.from_yaml(options.recipe)
    assert isinstance(recipe, SegmentationTrainConfig)
    config = resolve(recipe, check_split(training))
    torch.manual_seed(config.seed)
    if options.minutes is not None:
        print_row("transformers", **train_peer(training, config, options))
        return
    check_equal(config, training)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        outcome = train(options.dataset, run, config)
        assert outcome is not None
        minutes = float(RunFolder(run).read_metrics()[-1]["minutes"])
        assert config.max_steps is not None and isinstance(config.batch_size, int)
        print_row("ours", minutes, config.max_steps, config.batch_size, outcome.score)
    # In its own process, so that the peak memory is measured separately
    words = [sys.executable, __file__, str(options.dataset), "--recipe", str(options.recipe)]
    words += ["--minutes", f"{minutes:.3f}", "--precision", options.precision]
    subprocess.run(words, check=True)


def peer_model(config: SegmentationTrainConfig, training: Dataset) -> Any:
    """Return the model of transformers with the initial weights of this package."""
    with tempfile.TemporaryDirectory() as folder:
        build_model(config, training).save_pretrained(folder)
        return transformers.SegformerForSemanticSegmentation.from_pretrained(folder)


def check_equal(config: SegmentationTrainConfig, training: Dataset) -> None:
    """Check that both models give the same logits with the same weights."""
    pixels = torch.randn(1, 3, config.crop_size, config.crop_size)
    with torch.no_grad():
        ours = build_model(config, training).eval()(pixels)
        theirs = peer_model(config, training).eval()(pixels).logits
    difference = (ours - theirs).abs().max().item()
    assert difference < 1e-4, difference
    print(f"same weights, same image: logits differ by at most {difference:.1e}")


def train_peer(
    training: Dataset, config: SegmentationTrainConfig, options: argparse.Namespace
) -> dict[str, Any]:
    """Train in a plain loop for the given time; the schedule is based on the measured speed."""
    assert config.lr is not None and config.num_workers is not None and config.max_steps is not None
    assert config.warmup_steps is not None and isinstance(config.batch_size, int)
    model = peer_model(config, training).train()
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay)
    crops = TrainingCrops(
        training,
        augmentation(config, training.classes),
        SegFormer.from_variant(config.variant or "b0").preprocessing,
        config.seed,
        config.cache,
    )
    sampler = DrawSampler(len(training), config.batch_size, 1, 0, 10**6, config.seed)
    began, step, total = time.monotonic(), 0, config.max_steps
    seconds = 60 * options.minutes
    for pixels, mask in crop_loader(crops, sampler, config.num_workers):
        elapsed = time.monotonic() - began
        if elapsed >= seconds:
            break
        if step >= 10:
            total = max(step + 1, round(step / elapsed * seconds))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * lr_factor(step, total, config.warmup_steps, config.schedule)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            loss = model(pixel_values=pixels, labels=mask).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    minutes = (time.monotonic() - began) / 60
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        predictor = Predictor(folder, short_side=config.eval_size)
        miou = evaluate(open_dataset(options.dataset, "val"), predictor).scores().miou
    return {"minutes": minutes, "steps": step, "batch": config.batch_size, "miou": miou}


def print_row(name: str, minutes: float, steps: int, batch: int, miou: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row = {
        "minutes": round(minutes, 2),
        "steps": steps,
        "images_per_s": round(steps * batch / minutes / 60, 2),
        "miou": round(miou, 4),
        "peak_GiB": round(peak, 2),
    }
    print(yaml.safe_dump({name: row}, sort_keys=False), end="", flush=True)


if __name__ == "__main__":
    main()
