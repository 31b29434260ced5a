"""Trainings that torchrun or srun start, here as two processes on the CPU with gloo.

srun is imitated by the environment variables that it sets.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from socket import socket

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import draw_dataset, randomize
from segformer import Predictor, SegFormer, SegmentationTrainConfig, resume, train
from segformer.data.opening import open_dataset
from segformer.evaluation.evaluate import evaluate
from segformer.training.launch import Launch, find_launch, fit_launch

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4",
    "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1", "LOCAL_RANK": "2", "RANK": "6",
    "MASTER_ADDR": "gpu1", "MASTER_PORT": "29400",
}  # fmt: skip

SRUN = {
    "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_NODEID": "1", "SLURM_LOCALID": "2",
    "SLURM_PROCID": "6",
}  # fmt: skip

OPTIONS = {
    "crop_size": 32, "short_side": 48, "max_steps": 4, "batch_size": 2, "num_workers": 0,
    "log_every": 1, "drop_path": 0.0, "dropout": 0.0, "precision": "float32", "lr": 1e-3,
    "avg_non_ignore": False, "val_every": 999, "device": "cpu", "schedule": "constant",
    "ema_decay": 0.5,
}  # fmt: skip


def test_the_variables_of_torchrun_are_read() -> None:
    expected = Launch("torchrun", 2, 4, node=1, local_rank=2, rank=6, address="gpu1", port=29400)
    assert find_launch(TORCHRUN) == expected
    assert find_launch({**SRUN, **TORCHRUN}) == expected  # torchrun inside of srun
    with pytest.raises(ValueError, match="give all machines the same --nproc-per-node"):
        find_launch({**TORCHRUN, "WORLD_SIZE": "6"})


def test_the_variables_of_srun_are_read() -> None:
    found = find_launch(SRUN)
    assert found == Launch("srun", 2, 4, node=1, local_rank=2, rank=6, address="gpu03", port=18458)
    chosen = find_launch({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5000"})
    assert chosen is not None
    assert (chosen.address, chosen.port) == ("10.0.0.1", 5000)
    with pytest.raises(ValueError, match="not the same number on each; use --ntasks-per-node"):
        find_launch({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "6,2"})
    missing = {name: value for name, value in SRUN.items() if name != "SLURM_PROCID"}
    with pytest.raises(ValueError, match="has not set the environment variable 'SLURM_PROCID'"):
        find_launch(missing)


def test_a_batch_script_or_shell_of_slurm_is_no_launch() -> None:
    assert find_launch({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None
    assert find_launch({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_the_launcher_decides_devices_and_machines() -> None:
    launch = find_launch(SRUN)
    config = fit_launch(SegmentationTrainConfig(batch_size=2), launch)
    assert (config.devices, config.num_nodes, config.images_per_step) == (4, 2, 16)
    fit_launch(SegmentationTrainConfig(devices=4, num_nodes=2), launch)
    with pytest.raises(ValueError, match="devices is 3, but srun has started 4 processes on each"):
        fit_launch(SegmentationTrainConfig(devices=3), launch)
    with pytest.raises(ValueError, match="num_nodes is 2: start the processes .* with torchrun"):
        fit_launch(SegmentationTrainConfig(num_nodes=2), None)


@pytest.mark.parametrize(("nodes", "per_node", "accumulate"), [(1, 2, 8), (2, 4, 2), (1, 16, 1)])
def test_a_resumed_run_keeps_its_images_per_step(
    nodes: int, per_node: int, accumulate: int
) -> None:
    config = SegmentationTrainConfig(
        batch_size=3, devices=4, num_nodes=1, accumulate_grad_batches=4
    )
    launch = Launch("torchrun", nodes, per_node, 0, 0, 0, "localhost", 1)
    fitted = fit_launch(config, launch, resuming=True)
    assert fitted.accumulate_grad_batches == accumulate
    assert fitted.images_per_step == config.images_per_step == 48
    with pytest.raises(ValueError, match="cannot be divided among 5 processes"):
        fit_launch(config, Launch("srun", 1, 5, 0, 0, 0, "localhost", 1), resuming=True)


JOBS = """
import json, os, sys
from pathlib import Path
from segformer import SegmentationTrainConfig, resume, train

for port, (kind, path, values) in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)  # of the store of each training
    try:
        if kind == "damage":
            if os.environ["SLURM_PROCID"] == "0":
                Path(path).write_bytes(bytes(Path(path).stat().st_size))
        elif kind == "resume":
            resume(path, **values)
        else:
            train(kind, path, SegmentationTrainConfig(**values))
    except SystemExit as stop:  # process 0 alone returns
        if stop.code:
            raise
"""


def free_port() -> int:
    with socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(words: list[str], **variables: str) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_"))}
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**inherited, "OMP_NUM_THREADS": "1", **variables},
        start_new_session=True,
    )


def finish(processes: list[subprocess.Popen[str]]) -> None:
    """Wait until all have ended well."""
    try:
        outputs = [process.communicate(timeout=500)[0] for process in processes]
        for process, text in zip(processes, outputs, strict=True):
            assert process.returncode == 0, text
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last/model.safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a pretrained model, and runs of two processes."""
    root = tmp_path_factory.mktemp("launch")
    dataset = draw_dataset(root / "shapes", val=5)
    torch.manual_seed(0)
    tiny = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
    model = SegFormer.from_variant(
        "b0", classes=("noise", "box", "disc"), decoder_hidden_size=16,
        num_attention_heads=(1, 2, 3, 4), **tiny,
    )  # fmt: skip
    randomize(model).save_pretrained(root / "pretrained")
    base = {**OPTIONS, "pretrained": str(root / "pretrained")}
    single = {**base, "batch_size": 4}
    train(dataset, root / "one", SegmentationTrainConfig(**single))
    lora = {"lora_rank": 2, "accumulate_grad_batches": 2}
    train(dataset, root / "one-lora", SegmentationTrainConfig(**base, **lora))
    fsdp = {**base, "strategy": "fsdp"}
    jobs = [
        (str(dataset), str(root / "ddp"), base),
        (str(dataset), str(root / "fsdp"), fsdp),
        (str(dataset), str(root / "lora"), {**fsdp, **lora, "batch_size": 1}),
        (str(dataset), str(root / "parts"), {**fsdp, "max_steps": 2}),
        (str(dataset), str(root / "elastic"), {**base, "max_steps": 2}),
        ("damage", str(dataset / "images/val/01.png"), {}),
        ("resume", str(root / "parts"), {"max_steps": 4}),
    ]
    (root / "jobs.py").write_text(JOBS)
    shared = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    shared |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    shared |= {"MASTER_ADDR": "127.0.0.1"}
    words = json.dumps([(free_port(), job) for job in jobs])
    finish(
        [
            start(
                [str(root / "jobs.py"), words],
                **shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            )
            for rank in range(2)
        ]
    )
    return root


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a single process that torchrun has started."""
    for name, value in TORCHRUN.items():
        count = name.endswith("SIZE")
        monkeypatch.setenv(name, "1" if count else "0" if name.endswith("RANK") else value)
    yield


@pytest.mark.parametrize(
    ("run", "reference"), [("ddp", "one"), ("fsdp", "one"), ("lora", "one-lora")]
)
def test_two_processes_of_srun_train_the_weights_of_one(
    place: Path, run: str, reference: str
) -> None:
    assert losses(place / run) == pytest.approx(losses(place / reference), rel=1e-4)
    ours, theirs = weights(place / run), weights(place / reference)
    assert ours.keys() == theirs.keys()
    # The decoder's BatchNorm removes these. Their gradients are rounding errors, from which Adam
    # makes steps of its full rate
    removed = re.compile(r"linear_c\.\d\.proj\.bias|encoder\.layer_norm\.\d\.bias|running_mean")
    for name, tensor in theirs.items():
        if not removed.search(name):
            torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_the_run_folder_records_what_the_launcher_started(place: Path) -> None:
    entries = yaml.safe_load((place / "fsdp/config.yaml").read_text())
    assert (entries["devices"], entries["num_nodes"], entries["strategy"]) == (2, 1, "fsdp")
    assert entries["max_steps"] == 4


@pytest.mark.parametrize("run", ["ddp", "fsdp", "parts"])
def test_divided_validation_counts_as_one_process(place: Path, run: str) -> None:
    """For parts an image was damaged before."""
    report = json.loads((place / run / "report.json").read_text())
    failed: list[str] = []
    matrix = evaluate(
        open_dataset(place / "shapes", "val"),
        Predictor(place / run / "best", device="cpu"),
        on_error=lambda source, error: failed.append(str(source)),
    )
    unreadable = [str(place / "shapes/images/val/01.png")]
    assert failed == unreadable
    if run == "parts":
        assert report["confusion"] == matrix.counts.tolist()
        assert report["miou"] == round(matrix.scores().miou, 6)
        assert [entry["image"] for entry in report["failed"]] == unreadable
        assert report["images"] == 4
    else:
        assert report["images"] == 5
        with (place / run / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["val_miou"]]
        assert float(rows[-1]["val_miou"]) == round(report["miou"], 5)


def test_a_sharded_run_is_resumed_exactly(place: Path) -> None:
    assert losses(place / "parts") == losses(place / "fsdp")
    ours, theirs = weights(place / "parts"), weights(place / "fsdp")
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_checkpoints_of_fsdp_and_ddp_are_alike(place: Path) -> None:
    sharded, plain = (
        torch.load(place / run / "resume.ckpt", weights_only=True) for run in ("fsdp", "ddp")
    )
    for part in ("model", "average"):
        assert {n: t.shape for n, t in sharded[part].items()} == {
            n: t.shape for n, t in plain[part].items()
        }
    ours, theirs = (state["optimizer"]["state"] for state in (sharded, plain))
    for index, moments in theirs.items():
        for name, value in moments.items():
            torch.testing.assert_close(ours[index][name], value, rtol=1e-2, atol=1e-5)


@pytest.mark.usefixtures("alone")
def test_a_run_of_two_processes_is_resumed_by_one(place: Path) -> None:
    """As torchrun does when a machine is lost: each process takes more batches per step.

    The images of each step stay the same, but BatchNorm sees those of one batch at a time.
    """
    resume(place / "elastic", max_steps=4)
    curve, expected = losses(place / "elastic"), losses(place / "one")
    assert curve[:2] == pytest.approx(expected[:2], rel=1e-4)
    assert curve[2:] == pytest.approx(expected[2:], rel=3e-2)
    assert curve[2:] != expected[2:]


def test_torchrun(place: Path, tmp_path: Path) -> None:
    """Two processes of the command line; the damaged image is not among the training images."""
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    words += [str(free_port()), "-m", "segformer", "train", "--resume", str(tmp_path / "run")]
    train(
        draw_dataset(tmp_path / "shapes"),
        tmp_path / "run",
        SegmentationTrainConfig(**{**OPTIONS, "batch_size": 2, "accumulate_grad_batches": 2},
                                pretrained=str(place / "pretrained")),
    )  # fmt: skip
    finish([start([*words, "--max-steps", "6"])])
    assert len(losses(tmp_path / "run")) == 6
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["steps"] == 6


GUIDE = Path(__file__).parents[2] / "docs/guides/many-machines.md"
SCRIPT = Path(__file__).parents[2] / "examples/slurm/train.sbatch"


def test_options_in_the_guide_and_the_script_exist() -> None:
    known = {field.name for field in fields(SegmentationTrainConfig)} | {"out", "resume"}
    commands = [
        line.partition("segformer train")[2]
        for line in GUIDE.read_text(encoding="utf-8").splitlines()
        if line.startswith(("segformer", "torchrun", "srun"))
    ]
    commands += [line for line in SCRIPT.read_text().splitlines() if "words=(" in line]
    assert len(commands) == 6
    for command in commands:
        for option in re.findall(r"--([a-z-]+)", command):
            assert option.replace("-", "_") in known, option


STUBS = {  # of SLURM's commands: what they were called with goes into a log
    "srun": 'trap "echo stopped >> $LOG; exit 130" TERM; echo $$ > $LOG.pid; '
    'echo srun "$@" >> $LOG;'
    " for i in $(seq 600); do [ -f $LOG.done ] && exit 0; sleep 0.1; done",
    "scancel": 'echo scancel "$@" >> $LOG; kill -TERM $(cat $LOG.pid)',
    "scontrol": 'echo scontrol "$@" >> $LOG',
}


@pytest.mark.skipif(os.name == "nt", reason="runs a shell script")
@pytest.mark.parametrize("stops", [True, False])
def test_the_batch_script_stops_resumes_and_requeues(tmp_path: Path, stops: bool) -> None:
    log = tmp_path / "log"
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    if stops:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/resume.ckpt").touch()
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "SLURM_JOB_ID": "7"}
    process = subprocess.Popen(
        ["bash", str(SCRIPT)],
        env={**variables, "RUN": str(tmp_path / "run"), "DATASET": "d"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and "srun" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        if stops:
            process.terminate()
        else:
            Path(f"{log}.done").touch()
        process.wait(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    calls = log.read_text().splitlines()
    command = "srun --kill-on-bad-exit=1 python -m segformer train"
    if stops:
        assert calls[0] == f"{command} --resume {tmp_path / 'run'}"
        assert calls[1:] == ["scancel --signal=TERM 7", "stopped", "scontrol requeue 7"]
    else:
        assert calls == [
            f"{command} d --out {tmp_path / 'run'} --pretrained nvidia/mit-b2 --epochs 100"
        ]
        assert process.returncode == 0
