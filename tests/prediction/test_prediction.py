from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformer import ClassSet, Prediction, Preprocessing
from segformer.files import OutputExists

PEOPLE = ClassSet(("background", "hair", "skin"), palette=((0, 0, 0), (255, 0, 0), (0, 255, 0)))


@pytest.fixture
def prediction() -> Prediction:
    label_map = np.zeros((40, 60), np.uint8)
    label_map[:10], label_map[10:15] = 1, 2
    return Prediction(label_map, PEOPLE, np.full((40, 60, 3), 100, np.uint8), Path("me.jpg"))


def test_class_fractions_are_sorted_and_sum_to_one(prediction: Prediction) -> None:
    assert list(prediction.class_fractions.items()) == [
        ("background", 0.625), ("hair", 0.25), ("skin", 0.125),
    ]  # fmt: skip


def test_mask_by_name(prediction: Prediction) -> None:
    assert prediction.mask("hair").sum() == 600
    with pytest.raises(ValueError, match="no class 'hare'; there are background, hair, skin"):
        prediction.mask("hare")


def test_overlay_blends_colors_and_draws_edges(prediction: Prediction) -> None:
    image = np.asarray(prediction.overlay(opacity=0.5, legend=False))
    assert image.shape == (40, 60, 3)
    assert image[5, 5].tolist() == [178, 50, 50]
    assert image[9, 5].max() < 70  # the edge below the hair
    assert np.array_equal(np.asarray(prediction.overlay(opacity=0, legend=False)), prediction.image)


def test_legend_is_below_and_names_what_occurs(prediction: Prediction) -> None:
    image = prediction.overlay()
    assert image.height > 40 + 3 * 12
    legend = np.asarray(image)[40:].reshape(-1, 3)
    assert {(255, 0, 0), (0, 255, 0)} <= set(map(tuple, legend.tolist()))


def test_large_images_are_shown_smaller() -> None:
    label_map = np.zeros((100, 9000), np.uint8)
    label_map[:, 4500:] = 1
    prediction = Prediction(label_map, PEOPLE, np.zeros((100, 9000, 3), np.uint8))
    image = np.asarray(prediction.overlay(legend=False, max_side=900))
    assert image.shape == (10, 900, 3)
    assert image[5, 800].tolist() == [140, 0, 0]


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_images_that_are_not_rgb_are_shown(channels: int) -> None:
    image = np.random.default_rng(0).normal(1000, 300, (20, 30, channels)).astype(np.int16)
    prediction = Prediction(np.zeros((20, 30), np.uint8), PEOPLE, image)
    shown = np.asarray(prediction.overlay(opacity=0, legend=False))
    assert shown.min() < 30
    assert shown.max() > 225


def test_channels_named_red_green_and_blue_are_shown() -> None:
    image = np.zeros((20, 30, 5), np.int16)
    image[:, :10, 4], image[:, 10:20, 3], image[:, 20:, 0] = 3000, 3000, 3000
    preprocessing = Preprocessing.for_channels(5)
    assert preprocessing.rgb_channels is None
    named = replace(preprocessing, channel_names=("Blue", "nir", "swir", "Green", "Red"))
    assert named.rgb_channels == (4, 3, 0)
    label_map = np.zeros((20, 30), np.uint8)
    prediction = Prediction(label_map, PEOPLE, image, rgb_channels=named.rgb_channels)
    shown = np.asarray(prediction.overlay(opacity=0, legend=False))
    assert shown[5, [5, 15, 25]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_save(prediction: Prediction, tmp_path: Path) -> None:
    written = prediction.save(tmp_path / "out")
    assert [path.name for path in written] == ["me.png", "me_overlay.jpg"]
    assert np.array_equal(np.asarray(Image.open(written[0])), prediction.label_map)
    assert sorted((tmp_path / "out").iterdir()) == sorted(written)


def test_sixteen_bits_above_256_classes(tmp_path: Path) -> None:
    label_map = np.arange(1200, dtype=np.uint16).reshape(30, 40) % 300
    prediction = Prediction(label_map, ClassSet.numbered(300), np.zeros((30, 40, 3), np.uint8))
    path = prediction.save(tmp_path, overlay=False)[0]
    assert np.array_equal(np.asarray(Image.open(path)), label_map)


@pytest.mark.parametrize(
    ("file", "name"), [("a.png", "a"), ("a_overlay.jpg", "a"), ("b_confidence.png", "b")]
)
def test_no_result_replaces_the_image(tmp_path: Path, file: str, name: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / file)
    before = (tmp_path / file).read_bytes()
    prediction = Prediction(
        np.zeros((4, 4), np.uint8),
        PEOPLE,
        np.zeros((4, 4, 3), np.uint8),
        tmp_path / file,
        np.ones((4, 4), np.float32),
    )
    with pytest.raises(ValueError, match=f"{file}: would replace the image"):
        prediction.save(tmp_path, name=name)
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_bytes() == before


def test_files_are_replaced_unless_refused(prediction: Prediction, tmp_path: Path) -> None:
    prediction.save(tmp_path, overlay=False)
    prediction.save(tmp_path, overlay=False)
    with pytest.raises(OutputExists, match=r"me\.png already exists"):
        prediction.save(tmp_path, overwrite=False)
    assert len(list(tmp_path.iterdir())) == 1


def test_confidence_is_saved_as_gray_levels(prediction: Prediction, tmp_path: Path) -> None:
    confidence = np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60)
    written = replace(prediction, confidence=confidence).save(tmp_path, overlay=False)
    assert [path.name for path in written] == ["me.png", "me_confidence.png"]
    with Image.open(written[1]) as image:
        assert image.mode == "L"
        np.testing.assert_allclose(np.asarray(image) / 255, confidence, atol=0.5 / 255 + 1e-6)


def test_predictions_are_compared_and_hashed_by_identity(prediction: Prediction) -> None:
    other = replace(prediction)
    assert prediction == prediction  # noqa: PLR0124
    assert prediction != other
    assert len({prediction, other}) == 2


def test_an_overlay_is_the_blend_of_image_and_colors(prediction: Prediction) -> None:
    """Against the plain formula in floats, whatever the opacity."""
    rng = np.random.default_rng(0)
    label_map = np.kron(rng.integers(0, 3, (8, 10)), np.ones((5, 5), int)).astype(np.uint8)
    image = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    for opacity in (0.1, 0.55, 1.0):
        shown = Prediction(label_map, PEOPLE, image).overlay(opacity=opacity, legend=False)
        expected = (1 - opacity) * image + opacity * PEOPLE.colors()[label_map]
        edges = np.zeros(label_map.shape, bool)
        edges[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
        edges[:-1] |= label_map[:-1] != label_map[1:]
        expected[edges] *= 0.35
        np.testing.assert_allclose(np.asarray(shown, int), expected.astype(int), atol=1)


def test_class_fractions_of_more_classes_than_a_byte_counts() -> None:
    label_map = np.array([[299, 299], [299, 3]], np.uint16)
    prediction = Prediction(label_map, ClassSet.numbered(300), np.zeros((2, 2, 3), np.uint8))
    assert list(prediction.class_fractions.values()) == [0.75, 0.25]
