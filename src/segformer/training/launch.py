"""Processes that torchrun or SLURM's srun have started, and how a run fits their number."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from segformer.training.config import TrainConfig

Config = TypeVar("Config", bound=TrainConfig)


@dataclass(frozen=True)
class Launch:
    """This process among those that a launcher has started.

    Attributes:
        launcher: "torchrun" or "srun".
        nodes: Number of machines.
        per_node: Number of processes on each machine.
        node: Number of this machine.
        local_rank: Number of this process on its machine.
        rank: Number of this process among all.
        address: Host of process 0.
        port: Port at which the processes find each other.
    """

    launcher: str
    nodes: int
    per_node: int
    node: int
    local_rank: int
    rank: int
    address: str
    port: int


class LaunchedEnvironment(ClusterEnvironment):
    """What Fabric needs to know of processes that are already there.

    Args:
        launch: This process.
    """

    def __init__(self, launch: Launch):
        super().__init__()
        self.launch = launch

    @property
    def creates_processes_externally(self) -> bool:
        """True: Fabric starts no processes."""
        return True

    @property
    def main_address(self) -> str:
        """Host of process 0."""
        return self.launch.address

    @property
    def main_port(self) -> int:
        """Port at which the processes find each other."""
        return self.launch.port

    @staticmethod
    def detect() -> bool:
        """False: it is chosen by `find_launch`, never by Fabric."""
        return False

    def world_size(self) -> int:
        """Number of processes on all machines."""
        return self.launch.nodes * self.launch.per_node

    def set_world_size(self, size: int) -> None:
        """Leave it to the launcher."""

    def global_rank(self) -> int:
        """Number of this process among all."""
        return self.launch.rank

    def set_global_rank(self, rank: int) -> None:
        """Leave it to the launcher."""

    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return self.launch.local_rank

    def node_rank(self) -> int:
        """Number of this machine."""
        return self.launch.node


def find_launch(variables: Mapping[str, str] = os.environ) -> Launch | None:
    """Read the environment variables of torchrun or srun; None if neither started this process.

    In a job step of a single task, such as ``srun --pty bash``, srun does not count: processes are
    then started as without SLURM. torchrun inside of srun counts as torchrun.

    Args:
        variables: Environment variables.

    Raises:
        ValueError: The machines have different numbers of processes, or a variable is missing.
    """
    try:
        if "TORCHELASTIC_RUN_ID" in variables:
            return _torchrun(variables)
        if int(variables.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            return _srun(variables)
    except KeyError as error:
        raise ValueError(f"the launcher has not set the environment variable {error}") from None
    return None


def _torchrun(variables: Mapping[str, str]) -> Launch:
    world, local = int(variables["WORLD_SIZE"]), int(variables["LOCAL_WORLD_SIZE"])
    nodes = int(variables["GROUP_WORLD_SIZE"])
    if nodes * local != world:
        raise ValueError(
            f"torchrun has started {world} processes on {nodes} machines, {local} of them on this "
            "one; give all machines the same --nproc-per-node"
        )
    return Launch(
        launcher="torchrun",
        nodes=nodes,
        per_node=local,
        node=int(variables["GROUP_RANK"]),
        local_rank=int(variables["LOCAL_RANK"]),
        rank=int(variables["RANK"]),
        address=variables["MASTER_ADDR"],
        port=int(variables["MASTER_PORT"]),
    )


def _srun(variables: Mapping[str, str]) -> Launch:
    world = int(variables["SLURM_STEP_NUM_TASKS"])
    nodes = int(variables["SLURM_STEP_NUM_NODES"])
    per_node = variables.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 4(x2), or 4,2
    if world % nodes or "," in per_node:
        raise ValueError(
            f"srun has started {world} processes on {nodes} machines, not the same number on each; "
            "use --ntasks-per-node"
        )
    hosts = variables["SLURM_STEP_NODELIST"]
    job = int(variables["SLURM_JOB_ID"]) + int(variables.get("SLURM_STEP_ID", "0"))
    return Launch(
        launcher="srun",
        nodes=nodes,
        per_node=world // nodes,
        node=int(variables["SLURM_NODEID"]),
        local_rank=int(variables["SLURM_LOCALID"]),
        rank=int(variables["SLURM_PROCID"]),
        address=variables.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(hosts),
        port=int(variables.get("MASTER_PORT") or 15000 + job % 10000),
    )


def fit_launch(config: Config, launch: Launch | None, *, resuming: bool = False) -> Config:
    """A configuration with the devices and machines of a launcher.

    Args:
        config: The configuration; devices and num_nodes of a new run may be at their defaults.
        launch: What the launcher has started; None if there is no launcher.
        resuming: The run has begun: its images per step stay the same. With another number of
            processes than before, accumulate_grad_batches changes.

    Raises:
        ValueError: The configuration contradicts the launcher, or the images per step cannot be
            divided among the processes.
    """
    if launch is None:
        if config.num_nodes > 1:
            raise ValueError(
                f"num_nodes is {config.num_nodes}: start the processes on all machines with "
                "torchrun or srun"
            )
        return config
    if not resuming:
        for option, found in (("devices", launch.per_node), ("num_nodes", launch.nodes)):
            given = getattr(config, option)
            if given not in (1, found):
                raise ValueError(
                    f"{option} is {given}, but {launch.launcher} has started {launch.per_node} "
                    f"processes on each of {launch.nodes} machines; leave {option} out"
                )
        return replace(config, devices=launch.per_node, num_nodes=launch.nodes)
    if not isinstance(config.batch_size, int):  # the run ended before its batch size was chosen
        return replace(config, devices=launch.per_node, num_nodes=launch.nodes)
    at_once = config.batch_size * launch.per_node * launch.nodes
    if config.images_per_step % at_once:
        raise ValueError(
            f"the run takes {config.images_per_step} images per step, {config.batch_size} at once "
            f"on each device; they cannot be divided among {at_once // config.batch_size} processes"
        )
    return replace(
        config,
        devices=launch.per_node,
        num_nodes=launch.nodes,
        accumulate_grad_batches=config.images_per_step // at_once,
    )
