from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from segformer.training.config import TrainConfig

RECIPES = Path(__file__).parent.parent.parent / "recipes"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_committed_recipes_are_read(recipe: Path) -> None:
    TrainConfig.from_yaml(recipe)


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = TrainConfig(lr=6e-5, crop_size=320, schedule="cosine")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(asdict(config)))
    assert TrainConfig.from_yaml(tmp_path / "a.yaml") == config


def test_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 6e-5\n")
    assert TrainConfig.from_yaml(tmp_path / "a.yaml").lr == 6e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 3", "no key 'batchsize'; did you mean batch_size"),
        ("epochs: 0", "epochs must be positive, not 0"),
        ("lr: fast", "lr must be of type float, not 'fast'"),
        ("epochs: ten", "epochs must be of type int, not 'ten'"),
        ("cache: 1", "cache must be of type bool, not 1"),
        ("schedule: linear", "schedule must be one of poly, cosine, constant, not 'linear'"),
        ("hflip_prob: 2", "hflip_prob is a fraction from 0 to 1"),
        ("scale_min: 3", "scale_max 2.0 is below scale_min 3"),
        ("- a", "keys and values"),
        ("a: [", "cannot be read as a recipe"),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        TrainConfig.from_yaml(tmp_path / "a.yaml")
    assert "a.yaml" in str(caught.value)


def test_every_field_is_documented() -> None:
    text = TrainConfig.__doc__ or ""
    assert all(f"        {name}: " in text for name in TrainConfig.__dataclass_fields__)
