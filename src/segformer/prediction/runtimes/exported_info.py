"""What `segformer info` shows of a folder that `segformer export` wrote; the graph is not read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from segformer.checkpoints import layout
from segformer.checkpoints.info import class_table, input_line
from segformer.prediction.runtimes.exported import RECORD_FILE, find_graph

_TITLES = {"onnx": "ONNX", "openvino": "OpenVINO"}

_KINDS = {"segmenter": "segmentation", "classifier": "classification", "encoder": "encoder"}

_INPUTS = {
    "float": "normalized values, (batch, channels, height, width)",
    "image": "8-bit values, (batch, height, width, channels)",
}


def describe_exported(folder: str | Path) -> dict[str, Any]:
    """Facts about an exported model.

    Args:
        folder: A folder with a graph (`is_exported`); from another program it may have no
            ``export.json``.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    folder = Path(folder)
    format, path = find_graph(folder)
    record = layout.read_json(folder / RECORD_FILE) if (folder / RECORD_FILE).is_file() else {}
    entries = layout.read_json(folder / layout.CONFIG_FILE)
    config, classes = layout.config_from_hub(entries, folder / layout.CONFIG_FILE)
    preprocessing = layout.preprocessing_from_hub(
        layout.read_json(folder / layout.PREPROCESSING_FILE), folder / layout.PREPROCESSING_FILE
    )
    kind = layout.kind_from_hub(entries)
    return {
        "model": str(folder),
        "file": str(path),
        "bytes": sum(
            one.stat().st_size for one in {path, path.with_suffix(".bin")} if one.exists()
        ),
        "kind": kind,
        "format": format,
        "variant": config.variant,
        "channels": config.in_channels,
        "input": record.get("input"),
        "output": record.get("output"),
        "size": record.get("size"),
        "precision": _precision(record),
        "exported_from": record.get("model"),
        "written_by": record.get("written_by"),
        "license": record.get("license"),
        "checked_with": record.get("checked_with"),
        "versions": record.get("versions", {}),
        "checks": record.get("checks", []),
        "auto_runtime": "openvino" if format == "openvino" else "onnxruntime",
        "preprocessing": asdict(preprocessing),
        "classes": classes.entries() if kind != "encoder" else [],
    }


def exported_tables(description: dict[str, Any]) -> list[Table]:
    """The description as tables for a terminal: the facts, then the classes with their colors."""
    d = description
    facts = Table(show_header=False, title=d["model"], title_justify="left", title_style="bold")
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("model", f"SegFormer-{(d['variant'] or 'custom').upper()}, {_KINDS[d['kind']]}")
    facts.add_row("format", f"exported, {_TITLES[d['format']]}")
    facts.add_row("file", f"{d['file']}, {d['bytes'] / 1e6:.1f} MB with its weights")
    facts.add_row("exported from", d["exported_from"] or "not stated")
    facts.add_row("license", d["license"] or "not stated")
    facts.add_row("precision", d["precision"] or "not stated")
    facts.add_row("graph input", _INPUTS.get(d["input"], "not stated"))
    facts.add_row("graph output", d["output"] or "not stated")
    size = d["size"]
    facts.add_row("sizes", f"{size[1]} x {size[0]} pixels only, batch 1" if size else "any")
    facts.add_row("preprocessing", input_line(d["channels"], d["preprocessing"]))
    faster = " (--runtime openvino is often faster)" if d["format"] == "onnx" else ""
    facts.add_row("runtime auto", d["auto_runtime"] + faster)
    for check in d["checks"]:
        program = f" ({d['checked_with']})" if d["checked_with"] else ""
        facts.add_row("checked", check_line(check) + program)
    if not d["checks"]:
        facts.add_row("checked", "not stated")
    return [facts, *([class_table(d)] if d["classes"] else [])]


def _precision(record: dict[str, Any]) -> str | None:
    if record.get("int8"):
        return "int8"
    return {True: "float16", False: "float32"}.get(record["half"]) if "half" in record else None


def check_line(check: dict[str, Any]) -> str:
    """What a comparison of a graph with its model has found.

    Args:
        check: Members of `segformer.export.check.Check`, as ``export.json`` lists them.
    """
    parts = [f"{check['image']}, {' x '.join(map(str, check['shape']))}"]
    if check.get("largest_difference") is not None:
        parts.append(f"largest difference {check['largest_difference']:.1e}")
    if check.get("same_class") is not None:
        parts.append(f"same class {check['same_class']:.4%}")
    return ", ".join(parts)
