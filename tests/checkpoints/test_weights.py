"""A hash of weights sees every difference, and nothing else."""

import torch
from torch import nn

from vgpo.checkpoints import weight_hash


def weights() -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "b": torch.tensor(1.0),
        "c": torch.zeros(0, 4),
        "d": torch.tensor([True, False]),
    }


def test_the_hash_does_not_depend_on_order_strides_or_parameters():
    named = weights()
    expected = weight_hash(named.items())
    assert expected == weight_hash(reversed(named.items()))
    assert expected == weight_hash(iter({**named, "a": named["a"].T.contiguous().T}.items()))
    assert expected == weight_hash({**named, "b": nn.Parameter(named["b"])}.items())
    assert len(expected) == 64


def test_the_hash_sees_name_dtype_shape_and_every_bit():
    named = weights()
    a = named["a"]
    changes = [
        {**named, "e": torch.zeros(0)},
        {name: tensor for name, tensor in named.items() if name != "c"},
        {"dd" if name == "d" else name: tensor for name, tensor in named.items()},
        {**named, "a": named["b"], "b": a},
        {**named, "a": a.view(torch.float16)},
        {**named, "a": a.view(3, 2)},
        {**named, "c": torch.zeros(4, 0)},
        {**named, "b": torch.tensor([1.0])},
        {**named, "b": torch.tensor(1.0, dtype=torch.float64)},
        {**named, "b": torch.tensor(1.0 + 2**-52, dtype=torch.float64)},
    ]
    for index in range(a.numel() * 16):
        flipped = a.clone()
        flipped.view(torch.int16).view(-1)[index // 16] ^= -(1 << 15) if index % 16 == 15 else 1 << index % 16
        changes.append({**named, "a": flipped})
    hashes = {weight_hash(change.items()) for change in [named, *changes]}
    assert len(hashes) == 1 + len(changes)


def test_the_hash_tells_minus_zero_from_zero():
    assert weight_hash([("a", torch.tensor(0.0))]) != weight_hash([("a", torch.tensor(-0.0))])


def test_the_hash_of_a_distributed_tensor_is_that_of_the_local_part():
    class Spread:
        def to_local(self) -> torch.Tensor:
            return torch.ones(2)

    assert weight_hash([("a", Spread())]) == weight_hash([("a", torch.ones(2))])
