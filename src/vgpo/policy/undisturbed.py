"""Run a model without side effects: random state, modes, caches and gradients are restored."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@contextmanager
def training_without_dropout(model: nn.Module) -> Iterator[None]:
    """Training mode with gradient checkpointing and without dropout; use inside `undisturbed`.

    Layer dropout is an attribute of family-specific modules (`drop_prob`), value dropout of PyTorch's (`p`).
    """
    names = {module: "p" if isinstance(module, DROPOUTS) else "drop_prob" for module in model.modules()}
    shares = {module: vars(module)[name] for module, name in names.items() if name in vars(module)}
    model.train()
    for module in shares:
        setattr(module, names[module], 0.0)
    try:
        yield
    finally:
        for module, share in shares.items():
            setattr(module, names[module], share)
        model.eval()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside the block, no module is in training mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside the block, gradients are off and the model is in evaluation mode; random state, modes and caches are
    restored.

    Caches are attributes that a forward pass sets on a module, such as the `rope_deltas` of the Qwen families, and
    buffers.
    """
    kept = {module: (_attributes(module), dict(module.named_buffers(recurse=False))) for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    model.eval()
    for parameter in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, (attributes, buffers) in kept.items():
            _restore(module, attributes)
            for name, buffer in buffers.items():
                setattr(module, name, buffer)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes of a module other than parameters, buffers and modules: its mode, caches and settings."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def _restore(module: nn.Module, before: dict[str, Any]) -> None:
    for name in _attributes(module).keys() - before.keys():
        del vars(module)[name]
    for name, value in before.items():
        if vars(module).get(name) is not value:
            vars(module)[name] = value
