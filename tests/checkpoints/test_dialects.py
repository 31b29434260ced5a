import pytest
import torch

from segformer import SegFormer
from segformer.checkpoints.dialects import HUB


def test_round_trip_is_bit_exact(tiny_model: SegFormer) -> None:
    tensors = tiny_model.state_dict()
    theirs = HUB.from_ours(tensors)
    again = dict(HUB.to_ours(theirs, theirs.__getitem__))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_keys_and_values_are_cut_apart(tiny_model: SegFormer) -> None:
    joined = tiny_model.encoder.stages[1].blocks[0].attention.key_value.weight
    theirs = HUB.from_ours(tiny_model.state_dict())
    prefix = "segformer.encoder.block.1.0.attention.self."
    assert torch.equal(theirs[prefix + "key.weight"], joined[:16])
    assert torch.equal(theirs[prefix + "value.weight"], joined[16:])


def test_a_name_without_a_row() -> None:
    with pytest.raises(ValueError, match="encoder.extra.weight: the hf dialect has no name"):
        HUB.from_ours({"encoder.extra.weight": torch.zeros(1)})
