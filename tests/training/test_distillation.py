"""Distillation against the plain formula, and the teachers that can be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from conftest import TINY, draw_dataset, randomize
from segformer import SegFormer, SegmentationTrainConfig, resume, train
from segformer.classes import ClassSet
from segformer.image import Preprocessing
from segformer.training.distillation import Teacher, check_teacher, distillation_loss

QUICK = {
    "variant": "tiny", "crop_size": 32, "short_side": 48, "batch_size": 2, "max_steps": 4,
    "num_workers": 0, "log_every": 1, "precision": "float32", "drop_path": 0.0, "dropout": 0.0,
    "device": "cpu",
}  # fmt: skip


def plain_divergence(logits: Tensor, guide: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """With upsampled logits, by PyTorch's own functions."""
    ours, theirs = (
        F.interpolate(torch.cat([torch.zeros_like(x), x], 1) if x.shape[1] == 1 else x,
                      size=mask.shape[1:], mode="bilinear") / temperature
        for x in (logits, guide)
    )  # fmt: skip
    divergence = F.kl_div(
        ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    return temperature**2 * divergence[mask != 255].mean()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("classes", "size"), [(4, (40, 48)), (4, (37, 45)), (1, (40, 48))])
def test_value_and_gradient_are_the_formula(
    classes: int, size: tuple[int, int], temperature: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, guide = (
        (2 * torch.randn(2, classes, 10, 12, generator=generator)).double() for _ in range(2)
    )
    logits.requires_grad_()
    mask = torch.randint(0, 2, (2, *size), generator=generator)
    mask[0, :9] = 255
    ours = distillation_loss(logits, guide, mask, temperature=temperature)
    expected = plain_divergence(logits, guide, mask, temperature)
    torch.testing.assert_close(ours, expected)
    found, wanted = (torch.autograd.grad(3 * loss, logits)[0] for loss in (ours, expected))
    torch.testing.assert_close(found, wanted)


def test_chunks_do_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    from segformer.training import upsampling

    torch.manual_seed(0)
    logits, guide = torch.randn(2, 1, 3, 16, 16).double().unbind()
    mask = torch.randint(0, 3, (1, 64, 64))
    whole = distillation_loss(logits, guide, mask)
    monkeypatch.setattr(upsampling, "_CHUNK_VALUES", {"cpu": 1000, "other": 1000})
    torch.testing.assert_close(distillation_loss(logits, guide, mask), whole)


def test_nothing_labeled_and_equal_logits_give_0() -> None:
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    ignored = torch.full((1, 32, 32), 255)
    loss = distillation_loss(logits, torch.randn(1, 3, 8, 8), ignored)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    assert distillation_loss(logits, logits, torch.zeros(1, 32, 32).long()).item() < 1e-6


def models(*names: str, **preprocessing: object) -> tuple[SegFormer, SegFormer]:
    """A student of the classes a, b and c, and a teacher."""
    torch.manual_seed(0)
    student = SegFormer(replace(TINY, num_classes=3), ("a", "b", "c"))
    teacher = SegFormer(replace(TINY, num_classes=len(names)), names)
    randomize(teacher)
    teacher.preprocessing = replace(teacher.preprocessing, **preprocessing)
    return student, teacher.eval()


def test_classes_are_matched_by_name() -> None:
    student, model = models("c", "a", "b")
    teacher = Teacher(model, student, Fabric(accelerator="cpu"))
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(teacher.logits(pixels), model(pixels)[:, [1, 2, 0]])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_teacher_sees_its_own_normalization() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    student, model = models("a", "b", "c", mean=mean, std=std)
    teacher = Teacher(model, student, Fabric(accelerator="cpu"))
    stored = torch.rand(1, 64, 64, 3).mul(255).to(torch.uint8).numpy()[0]
    ours, theirs = (
        torch.from_numpy(p.normalize(stored)).permute(2, 0, 1)[None]
        for p in (student.preprocessing, model.preprocessing)
    )
    torch.testing.assert_close(teacher.logits(ours), model(theirs), rtol=1e-4, atol=1e-4)


def test_teachers_that_do_not_fit(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu")
    student, other = models("a", "b", "d")
    with pytest.raises(ValueError, match="the model lacks: c"):
        Teacher(other, student, fabric)
    _, deep = models("a", "b", "c", rescale=1.0)
    with pytest.raises(ValueError, match="trained on images with more than 8 bits"):
        Teacher(deep, student, fabric)
    student.preprocessing = Preprocessing(mean=(0.5,) * 4, std=(0.2,) * 4)
    _, rgb = models("a", "b", "c")
    with pytest.raises(ValueError, match="images of 3 channels; those of the data set have 4"):
        Teacher(rgb, student, fabric)
    rgb.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"teacher .*: it takes images of 3 channels"):
        check_teacher(str(tmp_path), ClassSet.of(("a", "b", "c")), 4)
    with pytest.raises(ValueError, match=r"teacher .*: the data set has 2 classes"):
        check_teacher(str(tmp_path), ClassSet.of(("a", "b")), 3)


def divergence(student: Path, teacher: Path) -> float:
    """Mean divergence of a student on noise and boxes that it has not seen."""
    torch.manual_seed(5)
    pixels = torch.randn(4, 3, 64, 64)
    ours, theirs = (SegFormer.from_pretrained(path)(pixels) for path in (student, teacher))
    return distillation_loss(ours, theirs, torch.zeros(4, 64, 64).long()).item()


def test_a_student_follows_its_teacher(tmp_path: Path, tiny_variant: str) -> None:
    """Two runs that differ in the weight of the divergence only; the class ids are permuted."""
    dataset, teacher = draw_dataset(tmp_path / "shapes"), tmp_path / "teacher"
    torch.manual_seed(1)
    model = SegFormer.from_variant(tiny_variant, classes=("disc", "noise", "box"))
    randomize(model).save_pretrained(teacher)
    options = {**QUICK, "max_steps": 30, "lr": 3e-3, "ema_decay": 0.0, "val_every": 99}
    for name, weight in (("alone", 0.0), ("guided", 10.0)):
        train(
            dataset,
            tmp_path / name,
            SegmentationTrainConfig(**options, teacher=str(teacher), distill_weight=weight),
        )
    reordered = tmp_path / "reordered"
    order = [1, 2, 0]
    with torch.no_grad():
        for parameter in (model.decoder.classifier.weight, model.decoder.classifier.bias):
            parameter.copy_(parameter[order])
    model.classes = ClassSet.of(("noise", "box", "disc"))
    model.save_pretrained(reordered)
    alone, guided = (divergence(tmp_path / n / "last", reordered) for n in ("alone", "guided"))
    assert guided < 0.5 * alone


def test_a_wrong_teacher_stops_before_the_run(tmp_path: Path, tiny_variant: str) -> None:
    dataset, teacher = draw_dataset(tmp_path / "shapes"), tmp_path / "teacher"
    SegFormer.from_variant(tiny_variant, classes=("noise", "box")).save_pretrained(teacher)
    with pytest.raises(ValueError, match="the data set has 3 classes"):
        train(dataset, tmp_path / "run", SegmentationTrainConfig(**QUICK, teacher=str(teacher)))
    assert not (tmp_path / "run").exists()


def test_a_resumed_student_ends_with_the_same_weights(tmp_path: Path, tiny_variant: str) -> None:
    dataset, teacher = draw_dataset(tmp_path / "shapes"), tmp_path / "teacher"
    SegFormer.from_variant(tiny_variant, classes=("noise", "box", "disc")).save_pretrained(teacher)
    config = SegmentationTrainConfig(**QUICK, teacher=str(teacher), schedule="constant")
    train(dataset, tmp_path / "whole", config)
    train(dataset, tmp_path / "parts", replace(config, max_steps=2))
    resume(tmp_path / "parts", max_steps=4)
    one, other = (
        SegFormer.from_pretrained(tmp_path / n / "last").state_dict() for n in ("whole", "parts")
    )
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
