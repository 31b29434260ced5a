"""The auto-annotation function, called as CVAT's SDK calls it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

cvat_sdk = pytest.importorskip("cvat_sdk", reason="cvat-sdk is not installed")

from cvat_sdk import masks, models
from cvat_sdk.auto_annotation import driver

from segformer import Predictor, SegFormer
from segformer.serving.cvat import SegmentationFunction, create
from segformer.serving.label_matching import LabelsDiffer
from serving.live import NAMES, named, photo


@dataclass
class Context:
    conf_threshold: float | None = None
    conv_mask_to_poly: bool = False
    frame_name: str = "a.png"


@pytest.fixture
def predictor(tiny_model: SegFormer) -> Predictor:
    return Predictor(named(tiny_model), device="cpu")


def uploaded(function: SegmentationFunction, context: Context, *labels: str) -> list:
    """The shapes that CVAT's driver uploads to a task with these labels."""
    task = [
        models.Label(id=100 + i, name=name, type="any", attributes=[], sublabels=[])
        for i, name in enumerate(labels)
    ]
    mapper = driver._AnnotationMapper(
        driver.logging.getLogger("cvat"),
        function.spec.labels,
        task,
        allow_unmatched_labels=False,
        conv_mask_to_poly=context.conv_mask_to_poly,
    )
    shapes = function.detect(context, Image.fromarray(photo()))
    tags, remapped = mapper.validate_and_remap(shapes, 7)
    assert not tags
    assert all(shape.frame == 7 for shape in remapped)
    return remapped


def test_masks_read_back(predictor: Predictor) -> None:
    shapes = uploaded(SegmentationFunction(predictor), Context(), *NAMES[1:])
    expected = predictor(photo()).label_map
    found = np.zeros_like(expected)
    for shape in shapes:
        mask = masks.decode_mask(shape.points, image_width=56, image_height=40)
        found[mask] = shape.label_id - 99
    assert (found == expected).all()
    assert len(shapes) > 1


def test_some_labels(predictor: Predictor) -> None:
    function = SegmentationFunction(predictor, "Sky, road")
    assert [label.name for label in function.spec.labels] == ["Sky", "road"]
    label_map = predictor(photo()).label_map
    shapes = uploaded(function, Context(), "Sky", "road", "other")
    assert len(shapes) == len({1, 4} & set(label_map.ravel().tolist()))


def test_polygons_where_cvat_wants_them(predictor: Predictor) -> None:
    shapes = uploaded(SegmentationFunction(predictor), Context(conv_mask_to_poly=True), *NAMES[1:])
    assert {shape.type.value for shape in shapes} == {"polygon"}
    assert all(len(shape.points) >= 6 for shape in shapes)


def test_the_threshold_is_for_pixels(predictor: Predictor) -> None:
    def pixels(threshold: float | None) -> int:
        shapes = SegmentationFunction(predictor).detect(
            Context(conf_threshold=threshold), Image.fromarray(photo())
        )
        return sum(
            masks.decode_mask(shape.points, image_width=56, image_height=40).sum()
            for shape in shapes
        )

    assert pixels(0) == pixels(None) > pixels(0.4) > pixels(1.0) == 0


def test_labels_that_the_model_does_not_know(predictor: Predictor) -> None:
    with pytest.raises(LabelsDiffer, match="no class 'dog'; labels of the project: 'car', 'dog'"):
        SegmentationFunction(predictor, "car,dog")


def test_create_as_cvat_calls_it() -> None:
    function = create(model="human-parsing-b0", labels="hair", short_side=64)
    assert isinstance(function, SegmentationFunction)
    assert [label.name for label in function.spec.labels] == ["hair"]
