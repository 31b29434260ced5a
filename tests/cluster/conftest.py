"""Ray clusters on this machine. Ray itself is imported when a test asks for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scene_samples import tiny_scene_model
from segformer import SegFormer

os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # read when Ray is imported


@pytest.fixture
def model() -> SegFormer:
    """See `tiny_scene_model`."""
    return tiny_scene_model()


@pytest.fixture(scope="module")
def ray_environment(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes of Ray import the package from this checkout, and may be slow to start."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.cloudpickle.register_pickle_by_value(request.module)  # its classes are sent whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent / "src"))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def one_node(ray_environment: None) -> Iterator[None]:
    """Ray with one node of three CPUs."""
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def two_nodes(ray_environment: None) -> Iterator[Any]:
    """Ray with two nodes of one CPU each; the one that is not the head is ``second``."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False},
    )
    cluster.second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
