"""Passes with a cache of prompts under gradient checkpointing, which transformers runs without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.families.build import LoadFamily
from tests.shared_prompt.test_families import Case, build_case, gradients_of, shared_rows
from vgpo.shared_prompt import passes
from vgpo.shared_prompt.passes import cache_argument, is_sharded

pytest_plugins = ["tests.families.fixtures"]


@pytest.fixture
def case(load_family: LoadFamily) -> Case:
    return build_case(load_family, "qwen2_5_vl", torch.device("cpu"), torch.float32)


def gradients(case: Case) -> dict[str, Tensor]:
    (shared_rows(case, case.responses).logprobs * case.weights).sum().backward()
    return gradients_of(case.model)


def test_without_care_a_checkpointed_layer_does_not_see_the_prompt(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `keeping_cache` is for: such a pass must not go on."""
    case.model.gradient_checkpointing_enable({"use_reentrant": False})
    case.model.train()
    found = gradients(case)
    assert (found["lm_head.weight"] - case.gradients["lm_head.weight"]).norm() < 1e-4
    monkeypatch.setattr(passes, "keeping_cache", lambda checkpoint, cache: checkpoint)
    with pytest.raises(RuntimeError, match=r"Decoder layers \[0, 1, 2\] did not read the cache"):
        shared_rows(case, case.responses)


def test_reentrant_checkpointing_is_refused(case: Case) -> None:
    case.model.gradient_checkpointing_enable({"use_reentrant": True})
    case.model.train()
    with pytest.raises(ValueError, match=r"no gradient under reentrant checkpointing. Set .*use_reentrant: false"):
        shared_rows(case, case.responses)


def test_layers_have_their_own_checkpointing_after_a_pass(case: Case) -> None:
    case.model.gradient_checkpointing_enable({"use_reentrant": False})
    case.model.train()
    layers = case.model.get_decoder().layers
    before = [layer._gradient_checkpointing_func for layer in layers]
    gradients(case)
    assert [layer._gradient_checkpointing_func for layer in layers] == before
    case.model.get_decoder().norm.register_forward_pre_hook(lambda *call: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shared_rows(case, case.responses)
    assert [layer._gradient_checkpointing_func for layer in layers] == before


def test_no_hook_stays(case: Case) -> None:
    before = {module: (len(module._forward_hooks), len(module._forward_pre_hooks)) for module in case.model.modules()}
    gradients(case)
    after = {module: (len(module._forward_hooks), len(module._forward_pre_hooks)) for module in case.model.modules()}
    assert after == before


def test_a_forward_without_a_cache_is_known(case: Case) -> None:
    assert cache_argument(case.model) in ("cache", "past_key_values")
    assert cache_argument(torch.nn.Linear(2, 2)) is None
    assert not is_sharded(case.model)
