"""Build the wheel and the sdist, and use the wheel as a user would.

    python .ci/check_wheel.py

It checks that the wheel holds its package data, that the sdist builds the same wheel, and that the
long description has no link that breaks on the package index. Then it installs the wheel into an
empty environment and runs commands there from an empty folder: first with the base dependencies
only, then with the `train` extra.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE_DATA = ("py.typed", "assets/human-parsing-b0/model.safetensors")
RELATIVE_LINK = re.compile(r"\]\((?!https?://|#)[^)]*\)|<img\b")

DRAW = """
from pathlib import Path
import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
Image.fromarray(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)).save("photo.jpg")
for split in ("train", "val"):
    for kind in ("images", "masks"):
        Path("shapes", kind, split).mkdir(parents=True)
    for i in range(4):
        mask = np.zeros((64, 64), np.uint8)
        mask[16:48, 8 * i : 8 * i + 32] = 1
        image = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        image[mask == 1] = 200
        Image.fromarray(image).save(f"shapes/images/{split}/{i}.png")
        Image.fromarray(mask).save(f"shapes/masks/{split}/{i}.png")
"""


def main() -> None:
    """Run all checks; exits with an error at the first that fails."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheel = build(work)
        check_files(wheel)
        check_installed(wheel, work)
    print("the wheel is complete and works in an empty environment")


def build(work: Path) -> Path:
    """Build sdist and wheel from the tree, and a wheel from the sdist; both must be equal."""
    run(sys.executable, "-m", "build", "--outdir", work / "dist", ROOT)
    (sdist,) = (work / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "sdist", filter="data")
    (unpacked,) = (work / "sdist").iterdir()
    run(sys.executable, "-m", "build", "--wheel", "--outdir", work / "direct", ROOT)
    (wheel,) = (work / "dist").glob("*.whl")  # `build` makes it from the sdist
    (direct,) = (work / "direct").glob("*.whl")
    if contents(wheel) != contents(direct):
        sys.exit(f"{sdist.name} builds another wheel than the repository")
    for name in ("README.md", "docs/README.md", "LICENSE", "tests/conftest.py"):
        if not (unpacked / name).is_file():
            sys.exit(f"{sdist.name} lacks {name}")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    """Names and bytes of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def check_files(wheel: Path) -> None:
    """Package data and the long description."""
    files = contents(wheel)
    source = ROOT / "src" / "segformer"
    recipes = [path.relative_to(source).as_posix() for path in source.glob("recipes/*.yaml")]
    page = (path for path in (source / "export/page").rglob("*") if path.is_file())
    names = [*recipes, *(path.relative_to(source).as_posix() for path in page)]
    for name in (*PACKAGE_DATA, *names):
        if f"segformer/{name}" not in files:
            sys.exit(f"{wheel.name} lacks {name}")
    for name in files:
        if not name.startswith(("segformer/", "segformer-")):
            sys.exit(f"{wheel.name} installs {name} outside of the package")
    (metadata,) = (text for name, text in files.items() if name.endswith(".dist-info/METADATA"))
    description = metadata.decode().partition("\n\n")[2]
    if not description.startswith("# "):
        sys.exit("the wheel has no long description")
    found = RELATIVE_LINK.search(description)
    if found:
        sys.exit(f"the long description has a relative link or an image: {found[0]}")


def check_installed(wheel: Path, work: Path) -> None:
    """Install the wheel into an empty environment and run commands from an empty folder."""
    run(sys.executable, "-m", "venv", work / "venv")
    python = work / "venv/bin/python"
    constraints = ("-c", ROOT / "constraints.txt")
    run(python, "-m", "pip", "install", "--quiet", *constraints, wheel)
    (work / "empty").mkdir()
    base = {"cwd": work / "empty"}
    where = "import segformer, sys; sys.exit(not segformer.__file__.startswith(sys.prefix))"
    run(python, "-c", where, **base)
    run(python, "-c", DRAW, **base)
    segformer = work / "venv/bin/segformer"
    run(segformer, "--help", **base)
    run(segformer, "info", "human-parsing-b0", **base)
    run(segformer, "predict", "photo.jpg", "--out", "masks", **base)
    for name in ("photo.png", "photo_overlay.jpg"):
        if not (work / "empty/masks" / name).is_file():
            sys.exit(f"segformer predict did not write {name}")
    run(python, "-m", "pip", "install", "--quiet", *constraints, f"{wheel}[train]")
    recipe = ("--recipe", "camvid-b0") if (ROOT / "src/segformer/recipes").is_dir() else ()
    run(segformer, "train", *recipe, "--help", **base)
    size = ("--max-steps", "2", "--batch-size", "2", "--crop-size", "64", "--short-side", "64")
    run(segformer, "train", "shapes", *recipe, *size, "--num-workers", "0", "--out", "run", **base)
    run(segformer, "predict", "photo.jpg", "--model", "run/best", "--out", "masks-2", **base)


def run(*words: str | Path, cwd: Path = ROOT) -> None:
    """Run a command that sees neither the repository nor the user's Python packages."""
    command = [str(word) for word in words]
    print("$", *(word if "\n" not in word else "..." for word in command), flush=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        sys.exit(f"{result.stdout}\nexit code {result.returncode}: {' '.join(command)}")


if __name__ == "__main__":
    main()
