import numpy as np
import pytest

from segformer.evaluation import bootstrap
from segformer.evaluation.bootstrap import interval, mean_over_classes, resampled_ious
from segformer.evaluation.per_image import ImageCounts


def counts(seed: int, images: int, classes: int) -> ImageCounts:
    rng = np.random.default_rng(seed)
    made = ImageCounts()
    for i in range(images):
        ids = np.sort(rng.permutation(classes)[: rng.integers(1, classes)])
        hits = rng.integers(0, 50, len(ids))
        true, predicted = hits + rng.integers(0, 50, len(ids)), hits + rng.integers(1, 50, len(ids))
        made.names.append(str(i))
        made.entries.append(np.stack([ids, hits, true, predicted], axis=1))
    return made


def test_agrees_with_a_loop_over_resamples_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_BLOCK", 7)  # several blocks, the last one smaller
    models, classes, count = (counts(0, 17, 4), counts(1, 17, 4)), 4, 17
    ious = resampled_ious(models, classes, 30, seed=5)
    rng = np.random.default_rng(5)
    for resample in range(30):
        drawn = rng.integers(0, count, count)
        for m, model in enumerate(models):
            hits, unions = np.zeros(classes), np.zeros(classes)
            for i in drawn:
                for class_id, hit, true, predicted in model.entries[i]:
                    hits[class_id] += hit
                    unions[class_id] += true + predicted - hit
            expected = [h / u if u else np.nan for h, u in zip(hits, unions, strict=True)]
            np.testing.assert_allclose(ious[m, resample], expected, rtol=1e-12)


def test_a_class_that_is_never_drawn_has_no_value() -> None:
    model = counts(0, 3, 3)
    ious = resampled_ious([model], 5, 20, seed=0)  # classes 3 and 4 are in no image
    assert np.isnan(ious[:, :, 3:]).all()
    ends = interval(ious[0])
    assert np.isnan(ends.low).tolist() == [False, False, False, True, True]
    assert not ends.excludes_zero[3:].any()
    np.testing.assert_allclose(mean_over_classes(ious), np.nanmean(ious, axis=-1))
    assert np.isnan(mean_over_classes(np.full((2, 3), np.nan))).all()


def test_intervals_cover_the_true_value_as_often_as_they_say() -> None:
    """IoU of one class over 60 images, 200 times; 95 % with a tolerance of four sigma."""
    rng = np.random.default_rng(0)
    true_iou, covered = 0.5, 0
    for repetition in range(200):
        model = ImageCounts()
        for i in range(60):
            union = int(rng.integers(50, 150))
            hits = int(rng.binomial(union, rng.beta(5, 5)))
            model.names.append(str(i))
            model.entries.append(np.array([[0, hits, hits, union]]))
        ends = interval(resampled_ious([model], 1, 200, seed=repetition)[0])
        covered += int(ends.low[0] <= true_iou <= ends.high[0])
    assert 0.88 <= covered / 200 <= 0.99
