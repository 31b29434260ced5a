from pathlib import Path

from fuzz_checkpoints import fuzz


def test_damaged_checkpoints_give_checkpoint_errors_only(tmp_path: Path) -> None:
    outcomes, failures = fuzz(400, seed=0, folder=tmp_path)
    assert not failures, failures[0]
    assert outcomes["CheckpointError"] > 100
    assert outcomes["loaded"] > 10  # damage to a weight or a name that nothing depends on
