"""Facts about a model, as numbers and as tables; its weights are not read."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from segformer.checkpoints.opening import Checkpoint
from segformer.config import count_macs, tensor_shapes

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def describe(checkpoint: Checkpoint, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Facts about a model that do not need its weights.

    Args:
        checkpoint: An opened model.
        size: Height and width in pixels to count MACs for. Default: the size that the model's
            preprocessing gives, of an image of 640 x 480 where it keeps the aspect ratio.

    Raises:
        CheckpointError: The tensors do not fit the configuration.
        ValueError: ``size`` is too small for the model.
    """
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    kind, parts = checkpoint.kind, checkpoint.parts
    checkpoint.check(parts)
    height, width = size or preprocessing.crop or preprocessing.target_size(480, 640)
    if min(height, width) < config.min_size:
        raise ValueError(
            f"{height} x {width} pixels are too small: both sides must be at least "
            f"{config.min_size}"
        )
    parameters = {part.removesuffix("."): _parameters(checkpoint, part) for part in parts}
    macs = count_macs(config, height, width)
    counted = {"encoder": macs.encoder}
    if kind == "segmenter":
        counted |= {"decoder": macs.decoder, "decoder_folded": macs.decoder_folded}
    elif kind == "classifier":
        counted["head"] = config.hidden_sizes[-1] * config.num_classes
    return {
        "model": checkpoint.origin,
        "file": str(checkpoint.path),
        "kind": kind,
        "format": checkpoint.format.title,
        "variant": config.variant,
        "decoder": config.decoder if kind == "segmenter" else None,
        "decoder_hidden_size": config.decoder_hidden_size if kind == "segmenter" else None,
        "hidden_sizes": list(config.hidden_sizes),
        "depths": list(config.depths),
        "channels": config.in_channels,
        "parameters": parameters,
        "macs": {"height": height, "width": width, **counted},
        "eps": asdict(config.eps),
        "multilabel": config.multilabel,
        "thresholds": list(config.decision_thresholds) if kind == "segmenter" else [],
        "hidden_act": config.hidden_act,
        "preprocessing": asdict(preprocessing),
        "license": checkpoint.license,
        "unused_tensors": checkpoint.unused,
        "classes": checkpoint.classes.entries() if kind != "encoder" else [],
    }


def tables(description: dict[str, Any]) -> list[Table]:
    """The description as tables for a terminal: the facts, then the classes with their colors.

    Args:
        description: From `describe`, and optionally ``auto_runtime``: by precision, what runs the
            model with ``--runtime auto``.
    """
    d = description
    facts = Table(show_header=False, title=d["model"], title_justify="left", title_style="bold")
    facts.add_column(style="bold")
    facts.add_column()
    variant = d["variant"].upper() if d["variant"] else f"{d['hidden_sizes']}, depths {d['depths']}"
    kind = {"segmenter": "segmentation", "classifier": "classification"}.get(d["kind"], "encoder")
    facts.add_row("model", f"SegFormer-{variant}, {kind}")
    facts.add_row("format", d["format"])
    facts.add_row("file", d["file"])
    facts.add_row("license", d["license"] or "not stated")
    total = sum(d["parameters"].values())
    parts = ", ".join(f"{part} {n / 1e6:.2f}" for part, n in d["parameters"].items())
    facts.add_row("parameters", f"{total / 1e6:.2f} M ({parts})")
    facts.add_row("MACs", _macs(d["macs"]))
    if d["decoder"] is not None:
        facts.add_row("decoder", f"{d['decoder']}, {d['decoder_hidden_size']} wide")
    eps = d["eps"]
    facts.add_row(
        "LayerNorm eps",
        f"blocks {eps['block']:g}, merging {eps['merging']:g}, "
        f"reduction {eps['reduction']:g}, stage ends {eps['stage']:g}",
    )
    facts.add_row("activation", d["hidden_act"])
    facts.add_row("input", input_line(d["channels"], d["preprocessing"]))
    if d["thresholds"]:
        limits = ", ".join(f"{threshold:.3g}" for threshold in d["thresholds"][:8])
        more = ", ..." if len(d["thresholds"]) > 8 else ""
        overlap = "classes may overlap, " if d["multilabel"] else "binary, "
        facts.add_row("sigmoids", f"{overlap}thresholds {limits}{more}")
    for precision, text in d.get("auto_runtime", {}).items():
        facts.add_row(f"runtime auto, {precision}", text)
    if d["unused_tensors"]:
        facts.add_row("unused tensors", ", ".join(d["unused_tensors"][:4]))
    return [facts, *([class_table(d)] if d["classes"] else [])]


def class_table(description: dict[str, Any]) -> Table:
    """The classes of a model; of a segmentation model with their colors."""
    d = description
    classes = Table("id", "class", *(["color"] if d["kind"] == "segmenter" else []))
    for row in d["classes"]:
        red, green, blue = row["color"]
        patch = Text("  ", style=f"on rgb({red},{green},{blue})")
        patch.append(f" #{red:02x}{green:02x}{blue:02x}", style="default on default")
        cells = [str(row["id"]), row["name"], *([patch] if d["kind"] == "segmenter" else [])]
        classes.add_row(*cells)
    return classes


def _parameters(checkpoint: Checkpoint, part: str) -> int:
    """Number of trainable values; the statistics of BatchNorm are not trained."""
    shapes = tensor_shapes(checkpoint.config, [part])
    return sum(math.prod(s) for name, s in shapes.items() if not name.endswith(_STATISTICS))


def _macs(macs: dict[str, int]) -> str:
    where = f"at {macs['width']} x {macs['height']} pixels"
    words = [f"encoder {macs['encoder'] / 1e9:.2f}"]
    total = macs["encoder"] + macs.get("decoder", 0) + macs.get("head", 0)
    if "decoder" in macs:
        folded = macs["decoder_folded"]
        words.append(f"decoder {macs['decoder'] / 1e9:.2f}, folded {folded / 1e9:.2f}")
        total_folded = f"; {(macs['encoder'] + folded) / 1e9:.2f} as it runs here"
    else:
        total_folded = ""
    return f"{total / 1e9:.2f} G {where} ({', '.join(words)}){total_folded}"


def input_line(channels: int, preprocessing: dict[str, Any]) -> str:
    """How an image becomes the model's input, in one line."""
    size, multiple = preprocessing["size"], preprocessing["multiple"]
    if isinstance(size, tuple):
        seen = f"resized to {size[1]} x {size[0]}"
    else:
        seen = f"short side resized to {size}" if size is not None else "not resized"
    if multiple > 1:
        seen += f", sides rounded to multiples of {multiple}"
    if preprocessing["crop"] is not None:
        seen += f", center crop {preprocessing['crop'][1]} x {preprocessing['crop'][0]}"
    mean = ", ".join(f"{value:.4g}" for value in preprocessing["mean"])
    std = ", ".join(f"{value:.4g}" for value in preprocessing["std"])
    scale = f"values x {preprocessing['rescale']:.4g}"
    return f"{channels} channels, {seen}; {scale}, mean {mean}, std {std}"
