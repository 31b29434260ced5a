"""Which parameters of a model are trained."""

from __future__ import annotations

import logging

from segformer.model.lora import add_adapters, merged
from segformer.training.config import TrainConfig
from segformer.training.sharding import full, is_sharded
from segformer.training.task import Model, Task

logger = logging.getLogger(__name__)


def choose_trained(model: Model, config: TrainConfig) -> None:
    """Freeze stages of the encoder and add low-rank adapters, in place, as configured."""
    model.encoder.freeze(config.freeze_stages)
    if config.lora_rank:
        add_adapters(model.encoder, config.lora_rank, config.lora_alpha, config.seed)


def log_trained(model: Model) -> None:
    """Log how many parameters are trained, if not all are."""
    counts = {p: p.numel() for p in model.parameters()}
    trained = sum(count for parameter, count in counts.items() if parameter.requires_grad)
    if trained < sum(counts.values()):
        logger.info(f"training {trained:,} of {sum(counts.values()):,} parameters")


def plain_model(trained: Model, task: Task) -> Model:
    """The model that is validated and saved: whole weights, adapters merged.

    If the weights are sharded, all processes must call this together.
    """
    if not is_sharded(trained):
        return merged(trained)
    plain = task.restore_model(trained.config)
    choose_trained(plain, task.config)
    plain.load_state_dict(full(trained.state_dict()))
    return merged(plain)
