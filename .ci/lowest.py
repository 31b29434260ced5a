"""Print the oldest supported version of each dependency, as a constraints file for pip.

The bounds are read from pyproject.toml. PyTorch is the exception: only its constraint in
constraints.txt has a small CPU build, older ones would bring gigabytes of CUDA libraries.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Print one line for each dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        requirements += extra
    for requirement in sorted(set(requirements)):
        name, separator, bound = requirement.partition(">=")
        if not separator or not bound.replace(".", "").isdigit():
            raise SystemExit(f"pyproject.toml: write {requirement!r} as NAME>=VERSION")
        if name != "torch":
            print(f"{name.partition('[')[0]}=={bound}")
    print((ROOT / "constraints.txt").read_text(encoding="utf-8").strip())


if __name__ == "__main__":
    main()
