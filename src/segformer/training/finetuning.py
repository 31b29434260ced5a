"""Which parameters of a model are trained."""

from __future__ import annotations

import logging

from segformer.model.lora import add_adapters
from segformer.training.config import TrainConfig
from segformer.training.task import Model

logger = logging.getLogger(__name__)


def choose_trained(model: Model, config: TrainConfig) -> None:
    """Freeze stages of the encoder and add low-rank adapters, in place, as configured."""
    total = sum(parameter.numel() for parameter in model.parameters())
    model.encoder.freeze(config.freeze_stages)
    if config.lora_rank:
        add_adapters(model.encoder, config.lora_rank, config.lora_alpha, config.seed)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trained < total:
        logger.info(f"training {trained:,} parameters; the model has {total:,}")
