from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from segformer.training.config import (
    CONFIGS,
    RECIPES,
    ClassificationTrainConfig,
    Recipe,
    SegmentationTrainConfig,
    TrainConfig,
)

OPTIONS = Path(__file__).parent / "options.txt"


def list_options() -> str:
    """Name, type and default of each option of both tasks."""
    lines = []
    for task, config in CONFIGS.items():
        for title, group in config.groups.items():
            lines.append(f"[{task}: {title}]")
            types, default = get_type_hints(group), group()
            for field in fields(group):
                kind = types[field.name]
                name = (
                    kind.__name__
                    if isinstance(kind, type) and not hasattr(kind, "__args__")
                    else kind
                )
                lines.append(
                    f"{field.name}: {name} = {getattr(default, field.name)!r}".replace(
                        "typing.", ""
                    )
                )
    return "\n".join(lines) + "\n"


def test_the_list_of_options_is_reviewed() -> None:
    """After an intended change: PYTHONPATH=tests python -m training.test_config."""
    assert OPTIONS.read_text(encoding="utf-8") == list_options()


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_of_the_package_are_read(recipe: Path) -> None:
    assert Recipe.read(recipe.stem).config == TrainConfig.from_yaml(recipe)


def test_unknown_recipe() -> None:
    with pytest.raises(ValueError, match="no such recipe; give a YAML file, or one of .*camvid-b0"):
        Recipe.read("camvid")


@pytest.mark.parametrize(
    "config",
    [
        SegmentationTrainConfig(lr=6e-5, crop_size=320, schedule="cosine", mean=(1, 2), std=(3, 4)),
        ClassificationTrainConfig(mixup_alpha=0.1),
    ],
)
def test_yaml_round_trip(tmp_path: Path, config: TrainConfig) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config.as_dict()))
    assert TrainConfig.from_yaml(tmp_path / "a.yaml") == config


def test_a_recipe_may_name_data_set_and_run_folder(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("dataset: water\nout: runs/water\nepochs: 3\n")
    recipe = Recipe.read(tmp_path / "a.yaml")
    assert (recipe.dataset, recipe.out) == (Path("water"), Path("runs/water"))
    assert recipe.config == SegmentationTrainConfig(epochs=3)
    assert recipe.given == {"epochs"}


def test_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 6e-5\n")
    assert TrainConfig.from_yaml(tmp_path / "a.yaml").lr == 6e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 3", "there is no option 'batchsize'; did you mean batch_size"),
        ("epochs: 0", "epochs must be positive, not 0"),
        ("lr: fast", "lr must be of type float, not 'fast'"),
        ("epochs: ten", "epochs must be of type int, not 'ten'"),
        ("cache: 1", "cache must be one of auto, true, false, not 1"),
        ("schedule: linear", "schedule must be one of poly, cosine, constant, not 'linear'"),
        ("hflip_prob: 2", "hflip_prob must be a fraction from 0 to 1"),
        ("scale_min: 3", "scale_max 2.0 is below scale_min 3"),
        ("max_grad_norm: -1", "max_grad_norm must be zero or positive, not -1.0"),
        ("patience: -1", "patience must be zero or positive"),
        ("weight_decay: -0.1", "weight_decay must be zero or positive"),
        ("warmup_steps: -5", "warmup_steps must be zero or positive"),
        ("power: -1", "power must be zero or positive"),
        ("lr: .inf", "lr must be a finite number"),
        ("mean: [0.5, 0.5, 0.5]", "mean and std belong together"),
        ("task: detect", "task must be one of segment, classify, not 'detect'"),
        ("task: classify\ndice_weight: 1", "dice_weight is an option of task segment; this is"),
        ("mixup_alpha: 0.2", "mixup_alpha is an option of task classify; this is task segment"),
        ("out: 3", "out must be a path, not 3"),
        ("- a", "keys and values"),
        ("a: [", "cannot be read as a recipe"),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        TrainConfig.from_yaml(tmp_path / "a.yaml")
    assert "a.yaml" in str(caught.value)


def test_every_option_is_documented() -> None:
    for config in CONFIGS.values():
        for group in config.groups.values():
            text = "".join(base.__doc__ or "" for base in group.__mro__)
            for field in fields(group):
                assert f"        {field.name}: " in text, (group, field.name)


def test_wrong_types_are_refused_in_python_too() -> None:
    with pytest.raises(ValueError, match="crop_size must be of type int, not '512'"):
        SegmentationTrainConfig(crop_size="512")  # type: ignore[arg-type]


if __name__ == "__main__":
    OPTIONS.write_text(list_options(), encoding="utf-8")


def test_cache_takes_words_and_booleans(tmp_path: Path) -> None:
    for text, expected in (("true", "true"), ("false", "false"), ("auto", "auto")):
        (tmp_path / "a.yaml").write_text(f"cache: {text}\n")
        config = TrainConfig.from_yaml(tmp_path / "a.yaml")
        assert config.as_dict()["cache"] == expected
        (tmp_path / "b.yaml").write_text(yaml.safe_dump(config.as_dict()))
        assert TrainConfig.from_yaml(tmp_path / "b.yaml") == config
    assert SegmentationTrainConfig().cache == "auto"
