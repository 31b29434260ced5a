"""The package as a whole: what it exports, and what it needs to be imported."""

from __future__ import annotations

import pkgutil
import re
import tomllib
from pathlib import Path

import segformer
from conftest import run_python

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_public_names_are_there() -> None:
    for name in segformer.__all__:
        assert getattr(segformer, name) is not None
    assert set(segformer.__all__) <= set(dir(segformer))


def test_prediction_needs_the_base_dependencies_alone() -> None:
    """As on a machine without the extras: their packages are hidden."""
    modules = [
        module.name
        for module in pkgutil.walk_packages(segformer.__path__, "segformer.")
        if not module.name.startswith(
            ("segformer.training", "segformer.serving.", "segformer.cluster.", "segformer.__main__")
        )
        and module.name != "segformer.evaluation.plots"
    ]
    modules += [
        "segformer.serving.client",
        "segformer.serving.options",
        "segformer.cluster.options",
    ]
    assert len(modules) > 20
    hidden = ["lightning", "matplotlib", "tensorboard", "transformers", "torchmetrics", "scipy"]
    hidden += ["fastapi", "starlette", "uvicorn", "prometheus_client", "multipart", "gradio"]
    hidden += ["rasterio", "shapely", "pyogrio", "pyarrow", "av", "ray", "openvino", "onnx", "nncf"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
        f"import importlib; [importlib.import_module(name) for name in {modules}]"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['lightning.fabric'] = None\n"
        "from segformer.cli import main; sys.exit(main(['train', 'x']))"
    )
    result = run_python(code)
    assert result.returncode == 1
    assert "pip install 'segformer[train]'" in result.stderr


def test_the_extra_of_the_service_is_named() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from segformer.cli import main; sys.exit(main(['serve']))"
    )
    result = run_python(code)
    assert result.returncode == 1
    assert "pip install 'segformer[serve]'" in result.stderr


def test_the_package_index_gets_no_relative_links() -> None:
    """The substitutions of pyproject.toml, applied to the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = re.compile(r"\]\((?!https?://|#)")
    assert relative.search(text)
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert not relative.search(text)
    assert "docs/portrait.jpg" not in text
    assert "docs/benchmarks.md" in text


def test_lower_bounds_are_exact_versions() -> None:
    """`make lowest` installs them."""
    project = PROJECT["project"]
    for requirement in (
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ):
        assert re.fullmatch(r"[\w-]+(\[[\w,]+\])?>=\d+(\.\d+)+", requirement), requirement
