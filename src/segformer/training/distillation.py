"""Knowledge distillation: a student learns from the class probabilities of a trained teacher.

Legend: B batch, K classes, C channels, h w logits, H W mask, n pixels of a chunk, T temperature.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.autograd.function import once_differentiable

from segformer.checkpoints.opening import open_checkpoint
from segformer.classes import ClassSet
from segformer.evaluation.matching import match_classes
from segformer.image import Preprocessing
from segformer.model.products import full_precision
from segformer.model.segformer import SegFormer
from segformer.training.config import TrainConfig
from segformer.training.options.distillation import DistillationOptions
from segformer.training.task import Model
from segformer.training.upsampling import upsampling


class Teacher:
    """A trained model, and the loss of a student relative to it.

    Args:
        model: The teacher.
        student: Model that is trained. Its classes are matched with the teacher's by name.
        fabric: Device and precision.
        weight: Weight of the loss.
        temperature: T.

    Raises:
        ValueError: The teacher has other classes or channels than the student.
    """

    def __init__(
        self,
        model: SegFormer,
        student: SegFormer,
        fabric: Fabric,
        weight: float = 1.0,
        temperature: float = 1.0,
    ):
        self.fabric, self.weight, self.temperature = fabric, weight, temperature
        self.ignore_index = student.classes.ignore_index
        self.order = _class_order(student.classes, model.classes)
        self.model = model.to(fabric.device).requires_grad_(False).eval()
        self.scale, self.shift = (
            values.to(fabric.device)
            for values in _conversion(student.preprocessing, model.preprocessing)
        )

    def loss(self, pixels: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """The weighted divergence of a student from the teacher, ().

        Args:
            pixels: (B, C, H, W), normalized for the student.
            logits: (B, K, h, w) of the student.
            mask: (B, H, W) class ids.
        """
        loss = distillation_loss(
            logits,
            self.logits(pixels),
            mask,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
        )
        return self.weight * loss

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Pixels normalized for the student -> logits (B, K, h, w) in the student's classes."""
        with self.fabric.autocast():
            logits: Tensor = self.model(pixels * self.scale + self.shift)
        if self.order is None:
            return logits
        return _two_classes(logits)[:, self.order]


def open_teacher(config: TrainConfig, student: Model, fabric: Fabric) -> Teacher | None:
    """Load the teacher that a configuration names.

    Raises:
        ValueError: It cannot be loaded, or has other classes or channels than the student.
    """
    if not isinstance(config, DistillationOptions) or config.teacher is None:
        return None
    assert isinstance(student, SegFormer)
    model = SegFormer.from_pretrained(config.teacher)
    try:
        return Teacher(model, student, fabric, config.distill_weight, config.temperature)
    except ValueError as error:
        raise ValueError(f"teacher {config.teacher}: {error}") from None


def check_teacher(teacher: str, classes: ClassSet, channels: int) -> None:
    """Check a teacher before the training begins, without reading its weights.

    Raises:
        ValueError: It cannot be opened, is no segmentation model, or has other classes or channels
            than the data set.
    """
    checkpoint = open_checkpoint(teacher)
    if checkpoint.kind != "segmenter":
        raise ValueError(f"teacher {teacher}: a {checkpoint.kind}, not a segmentation model")
    try:
        _class_order(classes, checkpoint.classes)
        if checkpoint.config.in_channels != channels:
            raise _other_channels(channels, checkpoint.config.in_channels)
    except ValueError as error:
        raise ValueError(f"teacher {teacher}: {error}") from None


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = 255,
) -> Tensor:
    """Divergence of a student's class probabilities from a teacher's, at the size of the mask.

    ``T ** 2 * KL(softmax(t / T) || softmax(s / T))``, where s and t are the bilinearly upsampled
    logits of student and teacher, averaged over the pixels that are not ignored. The factor keeps
    the gradients of the same size for all temperatures (Hinton et al. 2015, section 2). Its
    gradient with respect to s is ``T (softmax(s / T) - softmax(t / T))``. It is computed in chunks
    of pixels, as in `segformer.training.losses.cross_entropy_at_mask_size`; the upsampled logits
    are not stored.

    Args:
        logits: (B, K, h, w) of the student. K = 1 is a binary model with a sigmoid.
        teacher_logits: (B, K, h, w), or both classes of a binary model; no gradient is computed
            for them.
        mask: (B, H, W) class ids; only ``ignore_index`` matters.
        temperature: T.
        ignore_index: Class id of pixels that are ignored.

    Returns:
        Scalar, float32 (float64 for float64 logits). 0 if all pixels are ignored.
    """
    student, teacher = _two_classes(logits), _two_classes(teacher_logits.detach())
    if student.shape != teacher.shape:
        raise ValueError(
            f"logits of student and teacher must have the same shape; they have "
            f"{tuple(logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    with full_precision(logits.device):
        loss: Tensor = _Distillation.apply(  # type: ignore[no-untyped-call]
            student, teacher, mask != ignore_index, temperature
        )
    return loss


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, teacher: Tensor, counted: Tensor, temperature: float
    ) -> Tensor:
        size = (counted.shape[1], counted.shape[2])
        precise = logits if logits.dtype == torch.float64 else logits.float()
        total = precise.new_zeros(())
        gradient = torch.empty_like(precise)
        divisor = counted.sum().to(precise).clamp(min=1e-12)
        pairs = zip(
            precise.permute(0, 2, 3, 1), teacher.to(precise).permute(0, 2, 3, 1), strict=True
        )
        for i, (ours, theirs) in enumerate(pairs):
            student, guide = upsampling(ours, size), upsampling(theirs, size)
            for chunk, valid in enumerate(student.arrange(counted[i].to(torch.uint8), outside=0)):
                log_probs = (student.logits(chunk) / temperature).log_softmax(1)
                targets = (guide.logits(chunk) / temperature).log_softmax(1)
                difference = targets - log_probs
                expected = targets.exp_()
                weight = valid.to(precise)
                total += (expected * difference).sum(1) @ weight
                student.add(chunk, (log_probs.exp_() - expected) * weight[:, None])
            gradient[i] = (student.gradient() * (temperature / divisor)).permute(2, 0, 1)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total * (temperature**2 / divisor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        gradient = gradient * upstream[0].to(gradient.dtype)
        return gradient.to(ctx.dtype), None, None, None


def _two_classes(logits: Tensor) -> Tensor:
    """Logits of both classes of a binary model: sigmoid(x) = softmax(0, x)."""
    if logits.shape[1] != 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], 1)


def _class_order(ours: ClassSet, theirs: ClassSet) -> list[int] | None:
    """For each class of the student, the teacher's class id; None if the ids are the same."""
    ids = match_classes(ours, theirs).ids
    return None if ids is None else [int(i) for i in np.argsort(ids)]


def _conversion(ours: Preprocessing, theirs: Preprocessing) -> tuple[Tensor, Tensor]:
    """Scale and shift, (1, C, 1, 1) each, from pixels normalized for one model to another's.

    A stored value v is ``(rescale v - mean) / std`` to a model.
    """
    if len(ours.mean) != len(theirs.mean):
        raise _other_channels(len(ours.mean), len(theirs.mean))
    if ours.channel_names and theirs.channel_names and ours.channel_names != theirs.channel_names:
        raise ValueError(
            f"its channels are {', '.join(theirs.channel_names)}; those of the data set are "
            f"{', '.join(ours.channel_names)}"
        )
    if ours.expects_8_bit != theirs.expects_8_bit:
        kinds = {True: "8-bit images", False: "images with more than 8 bits"}
        raise ValueError(
            f"it was trained on {kinds[theirs.expects_8_bit]}; the images of the data set are read "
            f"as {kinds[ours.expects_8_bit]}"
        )
    ratio = theirs.rescale / ours.rescale
    mean, std, their_mean, their_std = (
        torch.tensor(values, dtype=torch.float64)
        for values in (ours.mean, ours.std, theirs.mean, theirs.std)
    )
    scale, shift = ratio * std / their_std, (ratio * mean - their_mean) / their_std
    return scale.float().view(1, -1, 1, 1), shift.float().view(1, -1, 1, 1)


def _other_channels(ours: int, theirs: int) -> ValueError:
    return ValueError(f"it takes images of {theirs} channels; those of the data set have {ours}")
