"""A service of a small model, shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from conftest import TINY, randomize


@pytest.fixture(scope="module")
def live() -> Iterator[object]:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from segformer import Predictor, SegFormer
    from segformer.serving.models import serve_model
    from serving.live import named, running

    torch.manual_seed(0)
    predictor = Predictor(named(randomize(SegFormer(TINY)).eval()), device="cpu")
    with running(serve_model("tiny", predictor)) as service:
        yield service
