import numpy as np
import pytest

from segformer import ClassSet
from segformer.classes import default_palette


def test_names_from_numbers() -> None:
    assert ClassSet.from_names({1: "b", 0: "a"}).names == ("a", "b")
    with pytest.raises(ValueError, match=r"no name for \[1\]"):
        ClassSet.from_names({0: "a", 2: "c"})
    with pytest.raises(ValueError, match="not the word 'water'"):
        ClassSet.from_names("water")
    with pytest.raises(ValueError, match="quote yes and no"):
        ClassSet.from_names([False, True])


def test_mapping_of_mask_values() -> None:
    classes = ClassSet(("land", "water"), mapping={0: 255, 150: 1, 7: 0, -1: 255})
    values = np.array([[0, 150], [7, -1]], np.int16)
    assert classes.to_class_ids(values).tolist() == [[255, 1], [0, 255]]
    assert classes.unknown_values(classes.to_class_ids(np.array([7, 3, 3]))) == {3: 2}


def test_mapping_of_every_value_of_a_16_bit_mask() -> None:
    classes = ClassSet(("a", "b"), mapping={65535: 255, 1000: 1})
    values = np.array([0, 1000, 65535, 40000], np.uint16)
    ids = classes.to_class_ids(values)
    assert ids.tolist() == [0, 1, 255, 40000]
    assert classes.unknown_values(ids) == {40000: 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ()}, "at least one class"),
        ({"names": ("a", "b"), "ignore_index": 1}, "ignore_index 1 is also the class 'b'"),
        ({"names": ("a",), "mapping": {0: 3}}, "sends the value 0 to class 3"),
        ({"names": ("a", "b", "a")}, "two classes have the name 'a'"),
        ({"names": ("a",), "palette": ((300, 0, 0),)}, "three integers from 0 to 255"),
        ({"names": ("a",), "palette": ((1, 2),)}, "three integers from 0 to 255"),
        ({"names": ("a", "b"), "palette": ((0, 0, 0),)}, "2 classes but 1 colors"),
    ],
)
def test_contradictions(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassSet(**fields)


def test_colors_are_distinct() -> None:
    assert len(set(default_palette(150))) == 150
    assert ClassSet.numbered(300).colors().shape == (300, 3)


def test_binary_has_a_background() -> None:
    assert ClassSet.numbered(1).names == ("background", "foreground")


def test_mapping_of_large_values_needs_no_large_table() -> None:
    no_data = 2**31 - 1
    classes = ClassSet(("a", "b"), mapping={no_data: 255, -(2**31): 255, 5: 1})
    values = np.array([[0, 5, no_data, -(2**31), 1000]], np.int32)
    assert classes.to_class_ids(values).tolist() == [[0, 1, 255, 255, 1000]]
    assert classes.to_class_ids(np.array([0, 5], np.uint8)).tolist() == [0, 1]
    large = np.array([2**32 - 1, 5], np.uint32)
    assert classes.to_class_ids(large).tolist() == [2**32 - 1, 1]


def test_names_from_files_are_printable() -> None:
    classes = ClassSet.from_names(["\x1b[2Jroad", "side\twalk", "été 道"])
    assert classes.names == ("?[2Jroad", "side walk", "été 道")


def test_of() -> None:
    classes = ClassSet(("a", "b"))
    assert ClassSet.of(classes) is classes
    assert ClassSet.of(["a", "b"]) == ClassSet.of(("a", "b")) == classes
    assert ClassSet.of({1: "b", 0: "a"}) == classes
    with pytest.raises(TypeError, match="a list of names or {id: name}, not int"):
        ClassSet.of(3)
    with pytest.raises(ValueError, match="not the word 'ab'"):
        ClassSet.of("ab")
    with pytest.raises(ValueError, match="class ids must be numbers"):
        ClassSet.of({"a": "b"})
