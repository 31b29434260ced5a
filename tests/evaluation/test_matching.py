import logging

import numpy as np
import pytest

from segformer import ClassSet
from segformer.evaluation.matching import ClassesDiffer, has_placeholder_names, match_classes


def test_equal_names_need_no_mapping() -> None:
    classes = ClassSet(("sky", "road"))
    match = match_classes(classes, classes)
    ids = np.array([[0, 1]])
    assert match.map_ids(ids) is ids


def test_permuted_names_are_mapped_whatever_their_case() -> None:
    match = match_classes(ClassSet(("Sky", "Road", "traffic  light")), ClassSet(
        ("road ", "Traffic Light", "sky")
    ))  # fmt: skip
    assert match.map_ids(np.array([[0, 1, 2]], np.uint8)).tolist() == [[1, 2, 0]]
    assert match.classes.names == ("Sky", "Road", "traffic  light")


def test_names_that_differ_only_in_case_are_matched_exactly() -> None:
    match = match_classes(ClassSet(("car", "Car")), ClassSet(("Car", "car")))
    assert match.map_ids(np.array([0, 1])).tolist() == [1, 0]
    with pytest.raises(ClassesDiffer):
        match_classes(ClassSet(("car", "Car")), ClassSet(("CAR", "car")))


def test_other_names_are_an_error_that_lists_both() -> None:
    dataset, model = ClassSet(("sky", "road", "car")), ClassSet(("sky", "hair", "hat"))
    with pytest.raises(ClassesDiffer) as error:
        match_classes(dataset, model)
    message = str(error.value)
    assert (
        "the data set has 3 classes (sky, road, car), the model has 3 (sky, hair, hat)" in message
    )
    assert "the model lacks: road, car" in message
    assert "the data set lacks: hair, hat" in message
    assert "--match-classes position" in message
    assert match_classes(dataset, model, "position").classes.names == dataset.names


@pytest.mark.parametrize("by", ["name", "position"])
def test_a_superset_is_an_error_that_names_the_missing_classes(by: str) -> None:
    small, large = ClassSet(("sky", "road")), ClassSet(("sky", "road", "car"))
    with pytest.raises(ClassesDiffer, match="the model lacks: car"):
        match_classes(large, small, by)  # type: ignore[arg-type]
    with pytest.raises(ClassesDiffer, match="the data set lacks: car"):
        match_classes(small, large, by)  # type: ignore[arg-type]


def test_long_lists_are_shortened() -> None:
    dataset = ClassSet(tuple(f"a{i}" for i in range(150)))
    with pytest.raises(ClassesDiffer, match="a11 and 138 more"):
        match_classes(dataset, ClassSet(("x", "y")))


def test_unknown_way_to_match() -> None:
    with pytest.raises(ValueError, match="must be 'name' or 'position', not 'color'"):
        match_classes(ClassSet(("a",)), ClassSet(("a",)), "color")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "unnamed",
    [("class 0", "class 1"), ("background", "class 1"), ("LABEL_0", "LABEL_1"), ("0", "1")],
)
def test_placeholder_names_are_matched_by_position(
    unnamed: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    named = ClassSet(("road", "sky"))
    with caplog.at_level(logging.INFO, "segformer"):
        assert match_classes(named, ClassSet(unnamed)).classes.names == named.names
        assert "the model has no class names; classes are matched by position" in caplog.text
        assert match_classes(ClassSet(unnamed), named).classes.names == named.names
    with pytest.raises(ClassesDiffer, match="2 classes .* has 3"):
        match_classes(ClassSet(unnamed), ClassSet(("a", "b", "c")))


def test_what_counts_as_a_placeholder() -> None:
    assert has_placeholder_names(ClassSet.numbered(1))
    assert has_placeholder_names(ClassSet.numbered(300))
    assert not has_placeholder_names(ClassSet(("class 1", "class 0")))
    assert not has_placeholder_names(ClassSet(("background", "water")))


NAMED = tuple(f"thing {chr(97 + i)}" for i in range(5))


@pytest.mark.parametrize(
    "names", [("unlabeled", *NAMED), ("other", *reversed(NAMED)), ClassSet.numbered(6).names]
)
def test_reduced_labels_drop_class_0(names: tuple[str, ...]) -> None:
    """Raw values 1..5 with 0 unlabeled, as ADE20K is released, for a model of five classes."""
    model = ClassSet(NAMED)
    match = match_classes(ClassSet(names), model, reduce_labels=True)
    ids = match.classes.to_class_ids(np.array([[0, 1, 2, 5, 255]]))
    assert ids.tolist() == [[255, 0, 1, 4, 255]]
    assert match.classes.unknown_values(ids) == {}
    predicted = match.map_ids(np.arange(5))
    assert [match.classes.names[i] for i in predicted] == list(NAMED)


def test_reduced_labels_follow_the_mapping_of_the_data_set() -> None:
    dataset = ClassSet(("unlabeled", *NAMED), mapping={77: 0, 78: 3})
    classes = match_classes(dataset, ClassSet(NAMED), reduce_labels=True).classes
    assert classes.to_class_ids(np.array([[77, 78, 1, 255]])).tolist() == [[255, 2, 0, 255]]


def test_reduced_labels_do_nothing_where_class_0_is_dropped_already() -> None:
    dataset = ClassSet(NAMED, mapping={0: 255, **{i + 1: i for i in range(5)}})
    match = match_classes(dataset, ClassSet(NAMED), reduce_labels=True)
    assert match.classes is dataset


def test_reduced_labels_and_unnamed_masks_of_as_many_values_are_ambiguous() -> None:
    dataset, model = ClassSet.numbered(5), ClassSet(NAMED)
    with pytest.raises(ClassesDiffer, match="may or may not be shifted already"):
        match_classes(dataset, model, reduce_labels=True)
    match = match_classes(dataset, model, "position", reduce_labels=True)
    assert match.classes.to_class_ids(np.array([[0, 4]])).tolist() == [[0, 4]]
