"""Parts of a training that are given as Python objects: data set, model, loss, transform.

Legend: H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn import functional as F

from segformer.classes import ClassSet
from segformer.data.dataset import Dataset, Sample
from segformer.data.loader import TrainingCrops
from segformer.model.segformer import SegFormer
from segformer.prediction.predictor import Predictor
from segformer.training.config import SegmentationTrainConfig
from segformer.training.own_data import (
    MapDataset,
    OwnDataset,
    OwnTransform,
    Transform,
    channels_of,
)
from segformer.training.processes import Processes
from segformer.training.segmentation import Segmentation
from segformer.training.task import Model

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From logits (B, K, H, W) and class ids (B, H, W) to the loss ()."""


@dataclass(frozen=True)
class OwnParts:
    """Parts that are given as Python objects; None where the configuration decides.

    Attributes:
        dataset: Training images and masks.
        validation: Validation images and masks.
        classes: Names of the classes of the masks, or the class set.
        model: The model to start from; it is not changed.
        loss: Replaces the loss of the configuration.
        transform: Replaces the augmentation of the configuration.
    """

    dataset: MapDataset | None = None
    validation: MapDataset | None = None
    classes: ClassSet | Sequence[str] | None = None
    model: SegFormer | None = None
    loss: Loss | None = None
    transform: Transform | None = None

    @property
    def names(self) -> list[str]:
        """Names of the parts that are given."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def check(self, recorded: Sequence[str]) -> None:
        """Compare with the parts that a run began with, which a resumed run is given again.

        Raises:
            ValueError: They are not the same; the message names them.
        """
        wanted = set(recorded) - {"model"}  # its weights are in the checkpoint
        given = set(self.names) - {"model"}
        missing, others = sorted(wanted - given), sorted(given - wanted)
        if missing:
            arguments = ", ".join(f"{name}=..." for name in missing)
            raise ValueError(
                f"the run began with Python objects that are not recorded; give them again: "
                f"segformer.resume(..., {arguments})"
            )
        if others:
            raise ValueError(f"the run began without {', '.join(others)}; leave it out")


class OwnSegmentation(Segmentation):
    """Segmentation of which some parts are given as Python objects.

    Args:
        dataset: Folder of the data set; not used if ``parts`` has one.
        config: The configuration.
        parts: The parts.
        state: State of the run that is resumed.

    Raises:
        ValueError: The parts do not fit each other or the configuration.
    """

    def __init__(
        self,
        dataset: Path,
        config: SegmentationTrainConfig,
        parts: OwnParts,
        state: dict[str, Any] | None = None,
    ):
        self.parts = parts
        if parts.dataset is not None:  # its items may differ each time they are read
            config = replace(config, cache="false")
        super().__init__(dataset, self._with_defaults_of_model(config), state)

    def _with_defaults_of_model(self, config: SegmentationTrainConfig) -> SegmentationTrainConfig:
        if self.parts.model is None:
            return config
        if config.pretrained is not None:
            raise ValueError("give only one of model and pretrained")
        seen = self.parts.model.preprocessing
        defaults: dict[str, Any] = {
            "mean": seen.mean,
            "std": seen.std,
            "rescale": seen.rescale,
            "lr": 6e-5,
            "head_lr_factor": 10.0,
        }
        missing = {name: v for name, v in defaults.items() if getattr(config, name) is None}
        return replace(config, **missing)

    def _open(
        self, dataset: Path, config: SegmentationTrainConfig, earlier: dict[str, list[str]] | None
    ) -> tuple[Dataset, Dataset | None]:
        parts = self.parts
        if parts.dataset is None:
            if parts.validation is not None or parts.classes is not None:
                raise ValueError("validation and classes belong to a data set that is an object")
            return super()._open(dataset, config, earlier)
        classes = parts.classes
        if classes is None:
            if parts.model is None:
                raise ValueError("give the names of the classes: classes=[...]")
            classes = parts.model.classes
        if not isinstance(classes, ClassSet):
            classes = ClassSet.from_names(classes)
        channels = channels_of(parts.dataset)
        training = OwnDataset.of(parts.dataset, "train", classes, channels)
        if parts.validation is None:
            return training, None
        return training, OwnDataset.of(parts.validation, "val", classes, channels)

    def build_model(self) -> SegFormer:
        """A copy of the model that is given, else as the configuration says."""
        if self.parts.model is None:
            return super().build_model()
        model, training = deepcopy(self.parts.model), self.training
        outputs = 1 if self.config.binary else len(training.classes)
        found = (model.config.num_classes, model.config.in_channels)
        if found != (outputs, training.channels):
            raise ValueError(
                f"the model has {found[0]} classes and {found[1]} channels, the data set "
                f"{outputs} and {training.channels}"
            )
        return self._fitted(model)

    def _fitted(self, model: SegFormer) -> SegFormer:
        """The model with the classes and the preprocessing of the training."""
        fitted = self.restore_model(model.config)
        fitted.load_state_dict(model.state_dict())
        return fitted

    def crops(self, model: Model, processes: int) -> TrainingCrops:
        """Crops of images and masks, by the transform if there is one."""
        crops = super().crops(model, processes)
        if self.parts.transform is not None:
            crops.augmentation = OwnTransform(  # type: ignore[assignment]
                self.parts.transform, self.config.crop_size, self.training.classes
            )
        return crops

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss that is given, of logits at the size of the masks; else as configured.

        Raises:
            ValueError: It returns no scalar.
        """
        if self.parts.loss is None:
            return super().loss(logits, targets)
        size = targets.shape[-2:]
        full = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
        loss = self.parts.loss(full, targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ValueError(f"loss must return a tensor of shape (), not {loss!r:.60}")
        return loss

    def state(self) -> dict[str, Any]:
        """With the names of the parts."""
        return {**super().state(), "own": self.parts.names}

    def _predictor(
        self, model: SegFormer, processes: Processes, *, confidence: bool = False
    ) -> Predictor:
        predictor = super()._predictor(model, processes, confidence=confidence)
        if isinstance(self.validation, OwnDataset):
            dataset = self.validation.with_8_bit(predictor.preprocessing.expects_8_bit)
            samples: dict[Any, Sample] = {sample.image: sample for sample in dataset}
            predictor.reader = lambda source: dataset.read_image(samples[source])
        return predictor
