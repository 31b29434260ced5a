"""The package as a whole: what it exports, and what it needs to be imported."""

from __future__ import annotations

import pkgutil

import segformer
from conftest import run_python


def test_public_names_are_there() -> None:
    for name in segformer.__all__:
        assert getattr(segformer, name) is not None
    assert set(segformer.__all__) <= set(dir(segformer))


def test_prediction_needs_the_base_dependencies_alone() -> None:
    """As on a machine without the extras: their packages are hidden."""
    rooms = [
        module.name
        for module in pkgutil.walk_packages(segformer.__path__, "segformer.")
        if not module.name.startswith(("segformer.training", "segformer.__main__"))
        and module.name != "segformer.evaluation.plots"
    ]
    assert len(rooms) > 20
    hidden = ["lightning", "matplotlib", "tensorboard", "transformers", "torchmetrics", "scipy"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
        f"import importlib; [importlib.import_module(room) for room in {rooms}]"
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
