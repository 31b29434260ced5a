"""`segformer data`, called with words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import draw_dataset, run_python
from data.test_division import draw
from segformer.cli import main
from segformer.cli.data import ACTIONS
from segformer.data import conversion


def test_help_lists_the_actions_and_each_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {action} " in shown for action in ACTIONS)
    for action in ACTIONS:
        with pytest.raises(SystemExit) as stop:
            main(["data", action, "--help"])
        assert not stop.value.code
        shown = capsys.readouterr().out
        assert f"Example: segformer data {action}" in shown
        assert "Exit codes: 0" in " ".join(shown.split())
        assert "--val-fraction" in shown
    assert main(["data", "chek"]) == 2
    assert "did you mean check?" in capsys.readouterr().err


def test_the_help_needs_no_torch() -> None:
    code = (
        "import sys; from segformer.cli import main\n"
        "try: main(['data', 'convert', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_check_a_set_with_only_val(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = draw_dataset(tmp_path / "shapes", train=0, val=4)
    (root / "dataset.yaml").unlink()
    (root / "masks/val/01.png").unlink()
    assert main(["data", "check", str(root)]) == 1
    shown = capsys.readouterr().out
    assert "read as images/ beside masks/, without dataset.yaml" in shown
    assert "split val: 4 images" in shown
    assert "01.png: there is no mask for this image" in shown
    assert "there is no split 'train' to train on, only val" in shown


def test_check_a_source_that_is_not_divided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path)
    words = ["data", "check", str(tmp_path), "--val-fraction", "0.25", "--group-by", r"scene(\d)"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "split train: 16 images" in shown
    assert "split val: 4 images" in shown
    (tmp_path / "val.txt").write_text("scene0/00\nscene1/01\n")
    assert main(["data", "check", str(tmp_path), "--val-list", str(tmp_path / "val.txt")]) == 0
    assert "split val: 2 images" in capsys.readouterr().out


def test_check_reads_a_layout_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path)
    assert main(["data", "check", str(tmp_path), "--layout", "cityscapes"]) == 1
    assert "no files of the layout 'cityscapes'" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path), "--layout", "citysapes"]) == 1
    assert "there is no layout 'citysapes'; the layouts are ade20k" in capsys.readouterr().err


def test_classes_that_never_occur_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = draw_dataset(tmp_path / "shapes")
    names = ["noise", "box", "disc", *(f"c{i}" for i in range(15))]
    text = f"train: images/train\nval: images/val\nallow_missing_classes: true\nnames: {names}\n"
    (root / "dataset.yaml").write_text(text)
    assert main(["data", "check", str(root)]) == 0
    lines = [li for li in capsys.readouterr().out.splitlines() if li.startswith("warning")]
    assert [line.partition(": c0")[0] for line in lines] == [
        f"warning: classes without a pixel in split '{split}'" for split in ("train", "val")
    ]
    assert lines[0].endswith("c9 and 5 more")


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = draw_dataset(tmp_path / "shapes"), tmp_path / "sheet.jpg"
    words = ["data", "show", str(root), "--out", str(out), "--count", "4"]
    assert main(words) == 0
    assert "(4 images)" in capsys.readouterr().out
    before = out.read_bytes()
    assert main([*words, "--class", "disc"]) == 1
    assert "already exists" in capsys.readouterr().err
    assert main([*words, "--class", "disc", "--augmented", "--overwrite"]) == 0
    assert out.read_bytes() != before
    assert main([*words, "--overwrite", "--worst"]) == 0
    assert "check complains of no image" in capsys.readouterr().out
    (root / "masks/train/03.png").unlink()
    assert main([*words, "--overwrite", "--worst"]) == 0
    assert "(1 images)" in capsys.readouterr().out
    for wrong, message in (
        (["--worst", "--augmented"], "worst cannot be combined"),
        (["--recipe", "camvid-b0"], "recipe is for augmented"),
        (["--count", "0"], "count must be at least 1"),
        (["--split", "test"], "has no split 'test'"),
    ):
        assert main([*words, *wrong, "--overwrite"]) == 1
        assert message in capsys.readouterr().err


def test_stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = draw_dataset(tmp_path / "shapes"), tmp_path / "stats"
    words = ["data", "stats", str(root), "--out", str(out)]
    assert main(words) == 0
    assert "most often with" in capsys.readouterr().out
    entries = json.loads((out / "stats.json").read_text())
    assert list(entries["splits"]) == ["train", "val"]
    with Image.open(out / "stats.png") as plot:
        assert plot.width > 1000
    assert main(words) == 1
    (root / "images/train/02.png").write_bytes(b"broken")
    assert main([*words, "--overwrite"]) == 3
    captured = capsys.readouterr()
    assert "skipped images: 1" in captured.err
    assert "02.png" in json.loads((out / "stats.json").read_text())["splits"]["train"]["skipped"][0]


def test_convert_and_tile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "source")
    source, out = str(tmp_path / "source"), tmp_path / "out"
    words = ["data", "convert", source, str(out), "--val-fraction", "0.25"]
    assert main(words) == 0
    assert "train: 15 images, val: 5 images" in capsys.readouterr().out
    assert main(["data", "check", str(out)]) == 0
    assert main(words) == 1
    assert "already exists" in capsys.readouterr().err
    assert main(["data", "convert", str(out), str(tmp_path / "coco"), "--format", "coco"]) == 0
    document = json.loads((tmp_path / "coco/annotations/instances_val.json").read_text())
    assert len(document["images"]) == 5
    (out / "images/val").joinpath("broken.jpg").write_bytes(b"broken")
    tiles = tmp_path / "tiles"
    assert main(["data", "tile", str(out), str(tiles), "--size", "16", "--overlap", "4"]) == 3
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err
    assert f"train: {15 * 2 * 3} tiles of 15 images" in captured.out
    first = sorted((tiles / "masks/train").rglob("*.png"))[0]
    assert np.asarray(Image.open(first)).shape == (16, 16)


def test_ctrl_c_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = draw_dataset(tmp_path / "shapes")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "write_record", interrupt)
    assert main(["data", "convert", str(root), str(tmp_path / "out")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
