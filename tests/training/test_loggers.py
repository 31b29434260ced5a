"""Where the numbers of a run go: TensorBoard by default, trackers on request."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from conftest import draw_dataset
from segformer import SegmentationTrainConfig, resume, train
from segformer.training import loggers
from segformer.training.loggers import TRACKING_FILE, Loggers, open_loggers

QUICK = {
    "variant": "tiny", "crop_size": 32, "short_side": 48, "batch_size": 2, "max_steps": 3,
    "num_workers": 0, "log_every": 1, "precision": "float32",
}  # fmt: skip


def config(**changes: object) -> SegmentationTrainConfig:
    return SegmentationTrainConfig(**{**QUICK, **changes})


def test_tensorboard_by_default_where_it_is_installed(tmp_path: Path, tiny_variant: str) -> None:
    pytest.importorskip("tensorboard")
    train(draw_dataset(tmp_path / "shapes"), tmp_path / "run", config())
    assert list((tmp_path / "run/tensorboard").glob("events.out.tfevents.*"))


def test_without_tensorboard_there_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it fails
    with caplog.at_level(logging.INFO, "segformer"):
        open_loggers(config(), tmp_path, 0)
    assert "no TensorBoard logs: pip install 'segformer[tensorboard]' brings it" in caplog.text
    with pytest.raises(ValueError, match="loggers: tensorboard is not installed; pip install"):
        open_loggers(config(loggers=("tensorboard",)), tmp_path, 0)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=rf"loggers: {name} is not installed; pip install 'segformer\[{name}\]'"
    ):
        open_loggers(config(loggers=(name,)), tmp_path, 0)


def test_unknown_loggers() -> None:
    with pytest.raises(ValueError, match="loggers: there is no 'comet'; there are csv, tensorb"):
        config(loggers=("csv", "comet"))


class FakeWandb(ModuleType):
    """What the package calls of wandb, recorded."""

    def __init__(self, active: bool = False):
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.exits: list[int] = []
        self._run = SimpleNamespace(
            define_metric=lambda name, step_metric: None,
            log=self.logged.append,
            finish=self.finish,
        )
        self.run = self._run if active else None

    def finish(self, exit_code: int) -> None:
        self.exits.append(exit_code)

    def init(self, **options: Any) -> Any:
        self.inits.append(options)
        return self._run


class FakeMLflow(ModuleType):
    """What the package calls of mlflow, recorded."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.started: list[dict[str, Any]] = []
        self.params: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ends: list[str] = []

    def active_run(self) -> None:
        return None

    def start_run(self, **options: Any) -> Any:
        self.started.append(options)
        return SimpleNamespace(info=SimpleNamespace(run_id="id7"))

    def log_params(self, params: dict[str, Any]) -> None:
        self.params = params

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def end_run(self, status: str) -> None:
        self.ends.append(status)


def test_trackers_get_the_rows_and_know_a_resumed_run(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb, mlflow = FakeWandb(), FakeMLflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    run = tmp_path / "shapes-run"
    train(draw_dataset(tmp_path / "shapes"), run, config(loggers=("wandb", "mlflow")))
    assert [row["step"] for row in wandb.logged] == [1, 2, 3, 3]
    assert {"loss", "lr", "epoch", "minutes", "images_per_s"} <= wandb.logged[0].keys()
    assert {"val_miou", "val_loss"} <= wandb.logged[-1].keys()
    assert mlflow.logged[-1][1]["val_miou"] == wandb.logged[-1]["val_miou"]
    assert mlflow.params["crop_size"] == 32
    assert (wandb.exits, mlflow.ends) == ([0], ["FINISHED"])
    assert (wandb.inits[0]["project"], wandb.inits[0]["name"]) == ("segformer", "shapes-run")
    ids = json.loads((run / TRACKING_FILE).read_text())
    resume(run, max_steps=5)
    assert wandb.inits[1]["id"] == wandb.inits[0]["id"] == ids["wandb"]
    assert mlflow.started[1]["run_id"] == "id7" == ids["mlflow"]
    assert [step for step, _ in mlflow.logged] == [1, 2, 3, 3, 4, 5, 5]


def test_an_active_run_is_used_and_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb(active=True)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    opened = open_loggers(config(loggers=("wandb",)), tmp_path, 0)
    opened.log(1, {"loss": 0.5})
    opened.close(True)
    assert wandb.logged == [{"step": 1, "loss": 0.5}]
    assert wandb.inits == wandb.exits == []


def test_a_logger_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        calls = 0

        def log(self, step: int, values: object) -> None:
            self.calls += 1
            raise ConnectionError("no network")

        def close(self, finished: bool) -> None:
            raise AssertionError("it is not asked again")

    failing = Failing()
    logging_to = Loggers([failing])
    logging_to.log(1, {"loss": 1.0})
    logging_to.log(2, {"loss": 1.0})
    logging_to.close(True)
    assert failing.calls == 1
    assert "Failing takes no more numbers: no network" in caplog.text


def test_a_run_that_fails_is_not_called_finished(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(ValueError, match="use a smaller --lr"):
        train(
            draw_dataset(tmp_path / "shapes"),
            tmp_path / "run",
            config(loggers=("wandb",), lr=1e30, max_grad_norm=0, warmup_steps=0, max_steps=9),
        )
    assert wandb.exits == [1]


def test_real_wandb_offline(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(draw_dataset(tmp_path / "shapes"), tmp_path / "run", config(loggers=("wandb",)))
    (files,) = (tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb")
    assert b"val_miou" in files.read_bytes()


def test_real_mlflow_in_files(
    tmp_path: Path, tiny_variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    train(draw_dataset(tmp_path / "shapes"), tmp_path / "run", config(loggers=("mlflow",)))
    ids = loggers._tracking_ids(tmp_path / "run")
    run = mlflow.get_run(ids["mlflow"])
    assert run.info.status == "FINISHED"
    assert run.data.params["crop_size"] == "32"
    history = mlflow.MlflowClient().get_metric_history(ids["mlflow"], "loss")
    assert [point.step for point in history] == [1, 2, 3]
