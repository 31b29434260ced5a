"""Graphs for OpenVINO are rewritten for its kernels, and compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segformer import SegFormer
from segformer.model.tracing import Graph, trace
from segformer.prediction.runtimes.openvino_graph import simplify

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters

openvino = pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.mark.parametrize("size", [None, (64, 96)])
def test_the_rewritten_graph_computes_the_same(
    tiny_model: SegFormer, size: tuple[int, int] | None, tmp_path: Path
) -> None:
    program, _ = trace(Graph(tiny_model), 3, size)
    plain, rewritten = openvino.convert_model(program), openvino.convert_model(program)
    simplify(rewritten)
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    for shape in (
        [(1, 3, 64, 96), (1, 3, 96, 128), (2, 3, 77, 130)] if size is None else [(1, 3, *size)]
    ):
        pixels = torch.randn(shape).numpy()
        before, after = (
            core.compile_model(model, "CPU", exact)(pixels)[0] for model in (plain, rewritten)
        )
        np.testing.assert_allclose(after, before, atol=1e-5)


def test_norms_are_of_three_axes_and_no_transposes_cancel(tiny_model: SegFormer) -> None:
    program, _ = trace(Graph(tiny_model), 3)
    model = openvino.convert_model(program)

    def found() -> tuple[int, int]:
        norms = [node for node in model.get_ops() if node.get_type_name() == "MVN"]
        four_axes = sum(len(node.get_input_partial_shape(0)) == 4 for node in norms)
        assert norms
        transposes = [node for node in model.get_ops() if node.get_type_name() == "Transpose"]
        cancel = 0
        for node in transposes:
            before = node.input_value(0).get_node()
            if before.get_type_name() == "Transpose":
                orders = [x.input_value(1).get_node().get_data() for x in (before, node)]
                cancel += list(orders[0][orders[1]]) == [0, 1, 2, 3]
        return four_axes, cancel

    four_axes, cancel = found()
    assert four_axes > 0
    assert cancel > 0
    simplify(model)
    assert found() == (0, 0)
