"""A training of a given duration: the arithmetic of its steps, and a run."""

from __future__ import annotations

import logging
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from conftest import draw_dataset
from segformer import SegmentationTrainConfig, resume, train
from segformer.training.loop import TrainingLoop
from segformer.training.options.duration import minutes_in
from segformer.training.state import State
from segformer.training.time_limit import TimeLimit

QUICK = {
    "variant": "tiny", "crop_size": 32, "short_side": 48, "batch_size": 2, "num_workers": 0,
    "log_every": 2, "val_every": 2, "precision": "float32", "loggers": ("csv",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "minutes"), [("30m", 30), ("90s", 1.5), ("1h30m", 90), ("2d", 2880), ("1.5h", 90)]
)
def test_durations(text: str, minutes: float) -> None:
    assert minutes_in(text) == pytest.approx(minutes)


@pytest.mark.parametrize("text", ["30", "", "ten minutes", "0m", "5m 3", "-5m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="max_time must be a duration such as 30m"):
        SegmentationTrainConfig(max_time=text)


def test_steps_that_fit() -> None:
    """10 minutes, steps of 0.1, a validation of 0.5 every 20 steps and at the end."""
    limit = TimeLimit(10, steps_per_validation=20, step_minutes=0.1)
    steps = limit.fitting_steps(0, 0, 0.5)
    assert steps == int(9.5 / (0.1 + 0.5 / 20))
    state = State(step=40, total_steps=steps, minutes=5.0, validation_minutes=0.5)
    assert limit.better_total(state) == steps  # as planned
    limit.measure(0.2)
    assert limit.step_minutes == pytest.approx(0.1 + 0.3 * 0.1)
    fewer = limit.better_total(state)
    assert fewer == 40 + int(4.5 / (0.13 + 0.5 / 20)) < steps
    state.minutes = 9.99
    assert limit.better_total(state) == 41  # one more step, and the end


def test_the_schedule_goes_on_evenly_after_a_change() -> None:
    state = State(step=30, total_steps=100)
    assert state.position == 30
    state.adapt(60)
    assert state.position / 60 == pytest.approx(0.3)
    positions = []
    for state.step in range(30, 61):
        positions.append(state.position / 60)
    assert positions[-1] == pytest.approx(1.0)
    differences = [b - a for a, b in pairwise(positions)]
    assert differences == pytest.approx([0.7 / 30] * 30)


def test_without_a_change_the_position_is_the_step() -> None:
    assert all(State(step=s, total_steps=97).position == s for s in range(97))


def test_a_run_keeps_to_its_time_and_resumes_as_recorded(
    tmp_path: Path,
    tiny_variant: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Steps get slower in the middle: there are fewer of them, and the run can be continued."""
    dataset, run = draw_dataset(tmp_path / "shapes"), tmp_path / "run"
    step = TrainingLoop._step

    def slower(self: TrainingLoop, batches: object) -> float:
        if self.state.step > 20:
            time.sleep(0.3)
        return step(self, batches)

    monkeypatch.setattr(TrainingLoop, "_step", slower)
    with caplog.at_level(logging.INFO, "segformer"):
        train(dataset, run, SegmentationTrainConfig(**QUICK, max_time="6s"))
    assert "steps instead of" in caplog.text
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    state = torch.load(run / "resume.ckpt", weights_only=True)["state"]
    assert recorded["max_time"] == "6s"
    assert recorded["max_steps"] == state["total_steps"] == state["step"]
    assert 0 < state["adapted_step"] < state["step"]
    with pytest.raises(ValueError, match="max_time 1s would not extend it"):
        resume(run, max_time="1s")
    monkeypatch.setattr(TrainingLoop, "_step", step)
    resume(run, max_steps=state["step"] + 2)
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert (recorded["max_time"], recorded["max_steps"]) == (None, state["step"] + 2)
