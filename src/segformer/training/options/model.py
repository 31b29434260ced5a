"""What is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from segformer.options import depends
from segformer.training.options.checked import BELOW_ONE, NOT_NEGATIVE, POSITIVE, Options


@dataclass(frozen=True)
class ModelOptions(Options):
    """What is trained.

    Attributes:
        variant: Size of the model: b0, b1, b2, b3, b4 or b5.
        pretrained: Model to start from: a folder, a file or a Hub id, in any checkpoint format.
            If its classes differ from the data set's, the classifier is re-initialized; if it has
            no decoder, the decoder is.
        pretrained_encoder_only: Load only the encoder of that model.
        freeze_stages: Number of encoder stages, from the first, that are not trained.
        gradient_checkpointing: Recompute activations in the backward pass. Takes less memory and
            about a third more time.
        drop_path: Stochastic depth of the last encoder block.
        lora_rank: Rank of low-rank adapters (LoRA) on the linear layers of the encoder. Only the
            adapters, the norms and the decoder or classifier are then trained; for small data
            sets. The saved models have the adapters merged. 0 trains all weights.
        lora_alpha: The adapters are scaled by this, divided by lora_rank.
    """

    variant: Annotated[str | None, depends("NAME", "that of the pretrained model, else b0")] = None
    pretrained: Annotated[str | None, depends("MODEL", "random weights")] = None
    pretrained_encoder_only: bool = False
    freeze_stages: Annotated[int, NOT_NEGATIVE] = 0
    gradient_checkpointing: bool = False
    drop_path: Annotated[float, BELOW_ONE] = 0.1
    lora_rank: Annotated[int, NOT_NEGATIVE] = 0
    lora_alpha: Annotated[float, POSITIVE] = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze_stages > 4:
            raise ValueError(f"freeze_stages must be from 0 to 4, not {self.freeze_stages}")
        if self.pretrained is None and self.pretrained_encoder_only:
            raise ValueError("pretrained_encoder_only needs pretrained, the model to start from")
        if self.pretrained is None and self.lora_rank:
            raise ValueError("lora_rank needs pretrained, the model whose weights are adapted")


@dataclass(frozen=True)
class SegmentationModelOptions(ModelOptions):
    """What is trained.

    Attributes:
        binary: Train one output with a sigmoid. The data set must have two classes.
        fit_thresholds: For binary models and classes that may overlap: choose the threshold of each
            sigmoid that gives the highest IoU in validation, and store it in the model. If false,
            it is 0.5.
        dropout: Dropout before the classifier.
    """

    binary: bool = False
    fit_thresholds: bool = True
    dropout: Annotated[float, BELOW_ONE] = 0.1
