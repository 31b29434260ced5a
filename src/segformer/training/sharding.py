"""Weights, gradients and optimizer states divided among the processes (FSDP).

PyTorch's ``fully_shard`` makes each parameter a `DTensor`, of which a process holds one shard.
Checkpoints hold whole tensors, so they do not depend on the number of processes, nor on whether
the tensors were sharded at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from segformer.model.encoder import EncoderBlock


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard a model in place: each encoder block by itself, and everything else together.

    A block's weights are gathered shortly before it runs, and released after it. The decoder
    composes its weights from several layers, so its layers cannot be gathered one by one.

    Args:
        model: A `SegFormer` or `SegFormerClassifier`, with equal weights in all processes.
        mesh: The processes, in one dimension.

    Returns:
        The model.
    """
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        if isinstance(module, EncoderBlock):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters of a model are sharded."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def full(values: Any) -> Any:
    """Whole tensors in place of sharded ones, in nested dicts and lists.

    All processes must call this together if there are sharded tensors, which are gathered one
    after the other and moved to the CPU.
    """
    if isinstance(values, DTensor):
        return values.full_tensor().cpu()
    if isinstance(values, Mapping):
        return {key: full(value) for key, value in values.items()}
    if isinstance(values, list):
        return [full(value) for value in values]
    return values


def load_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a model, sharded or not; all processes must call this together."""
    own = model.state_dict()
    model.load_state_dict(
        {name: _like(own[name], value) if name in own else value for name, value in state.items()}
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load whole tensors into an optimizer, whose parameters may be sharded.

    All processes must call this together.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = {
        index: {
            name: _like(parameters[index], value) if value.ndim else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": states})


def _like(reference: Tensor, value: Tensor) -> Tensor:
    """The tensor, sharded as the reference is."""
    if not isinstance(reference, DTensor):
        return value
    mesh = reference.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, reference.placements)
