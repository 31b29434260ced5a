"""Scenes and a model for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scene_samples import draw_pixels, tiny_scene_model, write_scene
from segformer import SegFormer


@pytest.fixture
def draw_scene(tmp_path: Path) -> Callable[..., Path]:
    """Draws a scene into a file, of a height and width."""

    def draw(height: int, width: int, name: str = "scene.tif", **profile: Any) -> Path:
        return write_scene(tmp_path / name, draw_pixels(height, width), **profile)

    return draw


@pytest.fixture
def scene_model() -> SegFormer:
    """A tiny model of three 8-bit channels whose classes all occur."""
    return tiny_scene_model()
