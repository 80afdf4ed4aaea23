"""A block that draws random numbers, changes modes and leaves caches behind, and a model that is as before."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from vgpo.policy.undisturbed import evaluation_mode, training_without_dropout, undisturbed


class Caching(nn.Module):
    """Keeps what it saw, as an attribute and in a buffer, and draws numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.5)
        self.last = "nothing"
        self.register_buffer("scale", torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.last, self.added = "seen", inputs
        self.scale = self.scale * 2
        return self.dropout(self.linear(inputs)) + torch.rand(2)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def seed() -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def test_everything_is_as_before() -> None:
    model = Caching()
    model.linear.eval()  # in training mode but for this one
    gradient = model.linear.weight.grad = torch.ones(2, 2)
    scale = model.scale
    seed()
    expected = draws()
    seed()
    with undisturbed(model):
        assert not torch.is_grad_enabled()
        assert not model.training
        assert model.linear.weight.grad is None
        draws()
        with training_without_dropout(model), torch.enable_grad():
            model(torch.ones(2)).sum().backward()
        model.linear.weight.grad = None
    assert draws() == expected
    assert [module.training for module in model.modules()] == [True, False, True]
    assert model.last == "nothing"
    assert not hasattr(model, "added")
    assert model.scale is scale
    assert model.dropout.p == 0.5
    assert model.linear.weight.grad is gradient
    assert model.linear.bias.grad is None


def test_an_error_leaves_nothing_either() -> None:
    model = Caching()
    with pytest.raises(RuntimeError, match="shapes"), undisturbed(model):
        model(torch.ones(3))
    assert model.training
    assert model.last == "nothing"


def test_dropout_is_off_and_checkpointing_on() -> None:
    model = Caching()
    with undisturbed(model), training_without_dropout(model):
        assert model.training
        assert model.dropout.p == 0


class DropPath(nn.Module):
    """As the vision towers of transformers write it: no dropout of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_prob = 0.25


def test_layers_that_are_dropped_stay_too() -> None:
    model = nn.Sequential(DropPath(), nn.Dropout(0.5))
    with undisturbed(model), training_without_dropout(model):
        assert [model[0].drop_prob, model[1].p] == [0.0, 0.0]
    assert [model[0].drop_prob, model[1].p] == [0.25, 0.5]


def test_evaluation_mode_ends_as_each_module_was() -> None:
    model = nn.Sequential(DropPath(), nn.Dropout(0.5))
    model[1].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]
