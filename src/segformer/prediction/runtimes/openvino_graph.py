"""Rewrites a graph so that OpenVINO has fast kernels for all of it; the values stay the same."""

from __future__ import annotations

from typing import Any

import numpy as np


def simplify(model: Any) -> None:
    """Rewrite the graph of an `openvino.Model` in place.

    Args:
        model: As OpenVINO converts it from PyTorch.
    """
    from openvino.passes import ConstantFolding, Manager

    nodes = model.get_ordered_ops()
    for node in nodes:
        if node.get_type_name() == "MVN":
            _flatten_norm(node)
        elif node.get_type_name() == "Transpose":
            _skip_inverse_transposes(node)
    model.validate_nodes_and_infer_types()
    passes = Manager()
    passes.register_pass(ConstantFolding())  # NNCF quantizes products with stored weights only
    passes.run_passes(model)


def _flatten_norm(norm: Any) -> None:
    """Normalize tokens as (B, h w, C) instead of (B, h, w, C).

    OpenVINO's kernel takes the last axis of three only; of four, it computes several operations.
    """
    from openvino import opset13

    tokens = norm.input_value(0)
    shape = tokens.get_partial_shape()
    axes = _constant(norm.input_value(1))
    if len(shape) != 4 or shape[3].is_dynamic or axes is None or list(axes % 4) != [3]:
        return
    how = norm.get_attributes()
    flat = opset13.reshape(tokens, np.array([0, -1, shape[3].get_length()]), special_zero=True)
    normalized = opset13.mvn(
        flat, np.array([2]), how["normalize_variance"], how["eps"], how["eps_mode"]
    )
    back = opset13.reshape(normalized, opset13.shape_of(tokens), special_zero=False)
    back.set_friendly_name(norm.get_friendly_name())
    _replace(norm.output(0), back.output(0))


def _skip_inverse_transposes(transpose: Any) -> None:
    """Let what follows a transpose of a transpose read the tensor itself, if they cancel.

    OpenVINO does this only where the first transpose has no other use, and copies otherwise.
    """
    before = transpose.input_value(0).get_node()
    if before.get_type_name() != "Transpose":
        return
    first, second = _constant(before.input_value(1)), _constant(transpose.input_value(1))
    if first is not None and second is not None and (first[second] == np.arange(len(first))).all():
        _replace(transpose.output(0), before.input_value(0))


def _constant(value: Any) -> Any:
    """The array of a constant, or None."""
    node = value.get_node()
    return np.asarray(node.get_data()) if node.get_type_name() == "Constant" else None


def _replace(output: Any, other: Any) -> None:
    for target in output.get_target_inputs():
        target.replace_source_output(other)
