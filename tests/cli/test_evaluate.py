"""`segformer evaluate`, called with words."""

from __future__ import annotations

import csv
import errno
import json
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import draw_dataset, randomize, run_python
from data.test_class_folders import draw_classes
from evaluation.test_report import check_self_contained
from segformer import ClassSet, SegFormer, SegFormerClassifier, SegFormerConfig
from segformer.checkpoints import opening
from segformer.cli import main
from segformer.evaluation.evaluate import REPORT_FILES
from segformer.model import pretrained


def save_segmenter(folder: Path, config: SegFormerConfig, names: tuple[str, ...]) -> str:
    torch.manual_seed(0)
    config = SegFormerConfig(**{**vars(config), "num_classes": len(names)})
    model = SegFormer(config, ClassSet(names))
    randomize(model)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def words(tmp_path: Path, tiny_config: SegFormerConfig) -> list[str]:
    """A command line that works; options can be appended."""
    dataset = draw_dataset(tmp_path / "shapes")
    model = save_segmenter(tmp_path / "model", tiny_config, ("noise", "box", "disc"))
    out = str(tmp_path / "out")
    return [
        *("evaluate", str(dataset), "--model", model, "--out", out),
        *("--short-side", "48", "--device", "cpu"),
    ]


@pytest.fixture
def class_words(tmp_path: Path, tiny_config: SegFormerConfig) -> list[str]:
    config = SegFormerConfig(**{**vars(tiny_config), "num_classes": 3})
    classes = ClassSet(("red", "green", "blue"), ignore_index=-1)
    SegFormerClassifier(config, classes).save_pretrained(tmp_path / "classifier")
    dataset = draw_classes(tmp_path / "colors")
    return [
        *("evaluate", str(dataset), "--model", str(tmp_path / "classifier")),
        *("--out", str(tmp_path / "out"), "--device", "cpu"),
    ]


def report(tmp_path: Path) -> dict[str, object]:
    entries = json.loads((tmp_path / "out" / "report.json").read_text())
    assert isinstance(entries, dict)
    return entries


def test_the_model_is_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tmp_path)])
    assert stop.value.code == 2
    assert "--model" in capsys.readouterr().err


def test_other_classes_are_refused(
    tmp_path: Path,
    words: list[str],
    tiny_config: SegFormerConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words[3] = save_segmenter(tmp_path / "parsing", tiny_config, ("hair", "skin", "hat"))
    assert main(words) == 1
    message = capsys.readouterr().err
    assert "noise, box, disc" in message
    assert "hair, skin, hat" in message
    assert not (tmp_path / "out").exists()
    assert main([*words, "--match-classes", "position"]) == 0
    assert report(tmp_path)["match_classes"] == "position"
    assert list(report(tmp_path)["classes"]) == ["noise", "box", "disc"]  # type: ignore[call-overload]


def test_nothing_is_replaced_unless_told_so(
    tmp_path: Path,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in REPORT_FILES:
        (tmp_path / "out").mkdir(exist_ok=True)
        mine = tmp_path / "out" / name
        mine.write_text("mine")
        with monkeypatch.context() as patch:
            patch.setattr(opening, "open_checkpoint", None)  # refused before the model is opened
            assert main(words) == 1
        assert name in capsys.readouterr().err
        assert mine.read_text() == "mine"
        mine.unlink()
    mine = tmp_path / "out" / "report.json"
    mine.write_text("mine")
    assert main([*words, "--overwrite"]) == 0
    assert report(tmp_path)["images"] == 2


def test_an_unwritable_folder_is_found_before_computing(
    tmp_path: Path,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "open_checkpoint", None)
    (tmp_path / "out").write_text("a file")
    assert main(words) == 1
    assert f"cannot write into {tmp_path / 'out'}: Not a directory" in capsys.readouterr().err
    words[5] = str(tmp_path / "out" / "deeper")
    assert main(words) == 1
    assert f"cannot write into {tmp_path / 'out'}: Not a directory" in capsys.readouterr().err

    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    words[5] = str(tmp_path / "new" / "deeper")
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert main(words) == 1
    assert f"cannot write into {tmp_path}: Permission denied" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_report_shows_the_images(tmp_path: Path, words: list[str]) -> None:
    assert main(words) == 0
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    page = check_self_contained(text)
    assert len(page.all("img")) == 2 * 4
    entries = report(tmp_path)
    assert f"{100 * entries['miou']:.2f} %" in text  # type: ignore[operator]
    assert entries["speed"]["images_per_s"] > 0  # type: ignore[index]
    assert 0 <= entries["calibration"]["ece"] <= 1  # type: ignore[index]
    with (tmp_path / "out/per_image.csv").open(newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["00.png", "01.png"]


def test_unreadable_files_are_skipped_and_have_an_exit_code(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shapes/images/val/00.png").write_bytes(b"broken")
    assert main(words) == 3
    captured = capsys.readouterr()
    assert "skipped images: 1" in captured.err
    assert "00.png: not an image" in captured.err
    assert "mIoU" in captured.out
    entries = report(tmp_path)
    assert entries["images"] == 1
    (failure,) = entries["failed"]  # type: ignore[misc]
    assert failure["image"].endswith("00.png")
    assert "not an image" in failure["error"]


def test_a_single_class_is_warned_of(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for mask in (tmp_path / "shapes/masks/val").iterdir():
        Image.new("L", (64, 48)).save(mask)
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())  # the table wraps its caption
    assert "warning: only one class occurs in this split, 'noise'" in shown


def test_the_model_is_opened_once(
    words: list[str], class_words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, original = [], opening.open_checkpoint

    def record(source: str) -> opening.Checkpoint:
        opened.append(source)
        return original(source)

    for module in (opening, pretrained):
        monkeypatch.setattr(module, "open_checkpoint", record)
    assert main(words) == 0
    assert opened == [words[3]]
    assert main([*class_words, "--overwrite"]) == 0
    assert opened == [words[3], class_words[3]]


def test_classifier(tmp_path: Path, class_words: list[str]) -> None:
    """The model lists its classes in another order than the folders."""
    options = ["--size", "32", "32", "--flip", "--batch-size", "4", "--precision", "bfloat16"]
    (tmp_path / "colors/val/red/00.png").write_bytes(b"broken")
    assert main([*class_words, *options]) == 3
    entries = report(tmp_path)
    assert entries["images"] == 5
    assert [Path(row["image"]).name for row in entries["failed"]] == ["00.png"]  # type: ignore
    assert list(entries["classes"]) == ["blue", "green", "red"]  # type: ignore[call-overload]
    with (tmp_path / "out/per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"].split("/")[0] for row in rows] == [row["class"] for row in rows]
    assert sum(int(row["correct"]) for row in rows) / 5 == pytest.approx(entries["top1"])
    errors = 5 - sum(int(row["correct"]) for row in rows)
    page = check_self_contained((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert len(page.all("img")) == errors
    protocol = entries["protocol"]
    assert isinstance(protocol, dict)
    assert (protocol["size"], protocol["flip"], protocol["batch_size"]) == ([32, 32], True, 4)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--window", "64"], "window"),
        (["--scales", "0.5", "1"], "scales"),
        (["--confidence"], "confidence"),
    ],
)
def test_options_of_segmentation_are_refused_by_a_classifier(
    class_words: list[str],
    options: list[str],
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*class_words, *options]) == 1
    message = capsys.readouterr().err
    assert "the model is a classifier" in message
    assert name in message


def test_the_base_installation_is_enough(words: list[str], class_words: list[str]) -> None:
    hidden = ["lightning", "matplotlib", "tensorboard", "transformers", "torchmetrics"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
        "from segformer.cli import main\n"
        f"sys.exit(main({words}) or main({[*class_words, '--overwrite']}))"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_help_documents_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("exit codes", "Example: segformer evaluate", "--match-classes", "--overwrite"):
        assert words in text


def test_the_validation_part_of_a_run_is_evaluated(tmp_path: Path, words: list[str]) -> None:
    dataset = Path(words[1])
    (dataset / "dataset.yaml").unlink()
    for kind in ("images", "masks"):
        for file in (dataset / kind / "val").iterdir():
            file.unlink()
        (dataset / kind / "val").rmdir()
        (dataset / kind / "train").rename(dataset / kind / "scene")
    (tmp_path / "val.txt").write_text("scene/01.png\nscene/04.png\n")
    words += ["--val-list", str(tmp_path / "val.txt"), "--match-classes", "position"]
    assert main(words) == 0
    assert report(tmp_path)["images"] == 2
    assert main([*words, "--overwrite", "--layout", "coco"]) == 1
