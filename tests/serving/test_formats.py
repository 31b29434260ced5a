"""Every answer decoded again and compared with the predictor's own result."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from conftest import TINY
from segformer import Predictor, SegFormer
from segformer.data.layouts.regions import polygon_region, run_length_region
from segformer.prediction.multilabel import MultiLabelPrediction
from segformer.prediction.staged import StagedPredictor
from segformer.serving.formats import ANSWERS, Format, choose_format
from segformer.serving.polygons import area, outline
from segformer.serving.problems import Problem
from serving.live import Live, encoded, form, photo

IMAGE = photo()


def fill(ring: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) pixels whose centers a ring encloses."""
    region = polygon_region([ring], *shape, 1, "ring")
    mask = np.zeros(shape, bool)
    height, width = region.mask.shape
    mask[region.top : region.top + height, region.left : region.left + width] = region.mask
    return mask


def test_json(live: Live) -> None:
    reply = live.segment(encoded(IMAGE))
    expected = live.predictor(IMAGE)
    assert reply.status == 200
    assert reply.json == {
        "model": "tiny",
        "height": 40,
        "width": 56,
        "class_fractions": expected.class_fractions,
    }
    assert list(reply.json["class_fractions"]) == list(expected.class_fractions)
    assert len(expected.class_fractions) > 1


def test_label_map(live: Live) -> None:
    reply = live.segment(encoded(IMAGE), "?format=label_map")
    assert reply.headers["content-type"] == "image/png"
    found = np.asarray(Image.open(io.BytesIO(reply.body)))
    assert (found == live.predictor(IMAGE).label_map).all()


def test_overlay(live: Live) -> None:
    reply = live.segment(encoded(IMAGE), "?format=overlay")
    assert reply.headers["content-type"] == "image/jpeg"
    expected = io.BytesIO()
    live.predictor(IMAGE).overlay().save(expected, "JPEG", quality=90)
    assert reply.body == expected.getvalue()


def test_confidence(live: Live) -> None:
    reply = live.segment(encoded(IMAGE), "?format=confidence")
    staged = live.service.models["tiny"].staged
    (expected,) = staged.run([staged.prepare(IMAGE)], confidence=True)
    assert expected.confidence is not None
    found = np.asarray(Image.open(io.BytesIO(reply.body)))
    assert (found == np.rint(255 * expected.confidence)).all()


def test_coco(live: Live) -> None:
    document = live.segment(encoded(IMAGE), "?format=coco").json
    expected = live.predictor(IMAGE).label_map
    assert {c["id"]: c["name"] for c in document["categories"]}[2] == "car"
    found = np.zeros_like(expected)
    for annotation in document["annotations"]:
        rle = annotation["segmentation"]
        region = run_length_region(rle["counts"], rle["size"], annotation["category_id"], "a")
        left, top, width, height = annotation["bbox"]
        assert (region.top, region.left, *region.mask.shape) == (top, left, height, width)
        assert annotation["area"] == region.mask.sum()
        found[top : top + height, left : left + width][region.mask] = region.class_id
    assert (found == expected).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
def test_coco_run_lengths_as_pycocotools_reads_them(live: Live) -> None:
    mask_tools = pytest.importorskip("pycocotools.mask")
    document = live.segment(encoded(IMAGE), "?format=coco").json
    expected = live.predictor(IMAGE).label_map
    for annotation in document["annotations"]:
        mask = mask_tools.decode(annotation["segmentation"])
        assert (mask == (expected == annotation["category_id"])).all()


def test_polygons(live: Live) -> None:
    reply = live.segment(encoded(IMAGE), "?format=polygons")
    assert reply.headers["content-type"] == "application/geo+json"
    expected = live.predictor(IMAGE).label_map
    found = np.zeros_like(expected)
    for feature in reply.json["features"]:
        rings = [np.array(ring) for ring in feature["geometry"]["coordinates"]]
        assert all((ring[0] == ring[-1]).all() for ring in rings)
        mask = np.zeros(expected.shape, bool)
        for ring in rings:
            mask ^= fill(ring[:-1], expected.shape)
        assert feature["properties"]["area"] == mask.sum()
        found[mask] = feature["properties"]["class_id"]
    assert (found == expected).all()


def test_simplified_polygons_have_fewer_corners(live: Live) -> None:
    def corners(query: str) -> int:
        features = live.segment(encoded(photo(96, 128)), query).json["features"]
        return sum(len(ring) for f in features for ring in f["geometry"]["coordinates"])

    assert corners("?format=polygons&simplify=2") < corners("?format=polygons") / 2


@pytest.mark.parametrize("scale", [1, 7])
def test_outlines_enclose_exactly_the_pixels(scale: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        mask = rng.random(rng.integers(1, 24, 2)) < rng.random()
        mask = mask.repeat(scale, 0).repeat(scale, 1)
        found = np.zeros_like(mask)
        for polygon in outline(mask):
            inside = fill(polygon.exterior, mask.shape)
            for hole in polygon.holes:
                assert area(hole) < 0
                inside ^= fill(hole, mask.shape)
            assert inside.sum() == area(polygon.exterior) + sum(map(area, polygon.holes))
            assert not (found & inside).any()
            found |= inside
        assert (found == mask).all()


def test_a_ring_has_one_hole() -> None:
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    mask[3:6, 3:6] = False
    (ring,) = outline(mask)
    assert sorted(ring.exterior.tolist()) == [[1, 1], [1, 8], [8, 1], [8, 8]]
    (hole,) = ring.holes
    assert sorted(hole.tolist()) == [[3, 3], [3, 6], [6, 3], [6, 6]]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/png", "label_map"),
        ("image/jpeg", "overlay"),
        ("application/geo+json", "polygons"),
        ("application/json", "json"),
        ("*/*", "json"),
        ("", "json"),
        ("image/*", "label_map"),
        ("text/html, image/jpeg;q=0.9, image/png;q=0.2", "overlay"),
        ("image/png;q=0, */*;q=0.1", "json"),
    ],
)
def test_accept_chooses_the_format(accept: str, kind: str) -> None:
    assert choose_format(None, accept) == kind
    assert choose_format("coco", accept) == "coco"


def test_nothing_acceptable(live: Live) -> None:
    with pytest.raises(Problem, match="image/png"):
        choose_format(None, "text/html")
    reply = live.segment(encoded(IMAGE), Accept="text/html")
    assert reply.status == 406
    assert reply.json["code"] == "not-acceptable"


def test_forms_and_lists(live: Live) -> None:
    second = photo(seed=1)
    expected = [live.predictor(image).class_fractions for image in (IMAGE, second)]
    body, media_type = form(("image", encoded(IMAGE)))
    reply = live.ask("POST", "/v1/segment", body, Content_Type=media_type)
    assert reply.json["class_fractions"] == expected[0]
    body, media_type = form(("image", encoded(IMAGE)), ("image", encoded(second)))
    reply = live.ask("POST", "/v1/segment", body, Content_Type=media_type)
    assert [r["class_fractions"] for r in reply.json["results"]] == expected
    images = [base64.b64encode(encoded(image)).decode() for image in (IMAGE, second)]
    images[1] = f"data:image/png;base64,{images[1]}"
    body = json.dumps({"images": images}).encode()
    reply = live.ask("POST", "/v1/segment", body, Content_Type="application/json")
    assert [r["class_fractions"] for r in reply.json["results"]] == expected
    reply = live.ask("POST", "/v1/segment?format=label_map", body, Content_Type="application/json")
    for result, image in zip(reply.json["results"], (IMAGE, second), strict=True):
        assert result["media_type"] == "image/png"
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(result["data"]))))
        assert (found == live.predictor(image).label_map).all()


def test_kinds_of_files(live: Live) -> None:
    expected = live.predictor(IMAGE).class_fractions
    for kind in ("PNG", "BMP", "TIFF"):
        assert live.segment(encoded(IMAGE, kind)).json["class_fractions"] == expected
    jpeg = encoded(IMAGE, "JPEG")
    assert live.segment(jpeg).json["class_fractions"] == live.predictor(jpeg).class_fractions
    deep = io.BytesIO()
    tifffile.imwrite(deep, IMAGE.astype(np.uint16) * 257, photometric="rgb")
    assert live.segment(deep.getvalue()).json["class_fractions"] == expected
    turned = Image.Exif()
    turned[0x0112] = 6
    reply = live.segment(encoded(IMAGE, "JPEG", exif=turned))
    assert (reply.json["height"], reply.json["width"]) == (56, 40)


def test_classes_that_overlap() -> None:
    """A mask for each class in COCO JSON and polygons, and one number for each pixel elsewhere."""
    torch.manual_seed(0)
    model = SegFormer(replace(TINY, multilabel=True)).eval()
    staged = StagedPredictor(Predictor(model, device="cpu"))
    (prediction,) = staged.run([staged.prepare(IMAGE)], confidence=True)
    assert isinstance(prediction, MultiLabelPrediction)
    answers = {name: ANSWERS[name].encode(prediction, "tiny", 0.0) for name in get_args(Format)}
    areas = {a["category_id"]: a["area"] for a in json.loads(answers["coco"])["annotations"]}
    expected = {i: int(mask.sum()) for i, mask in enumerate(prediction.masks) if mask.any()}
    assert areas == expected
    assert sum(expected.values()) > prediction.label_map.size  # they do overlap
    features = json.loads(answers["polygons"])["features"]
    assert {feature["properties"]["class_id"] for feature in features} == expected.keys()
    confidence = np.asarray(Image.open(io.BytesIO(answers["confidence"])))
    assert (confidence == np.rint(255 * prediction.confidence.max(0))).all()
