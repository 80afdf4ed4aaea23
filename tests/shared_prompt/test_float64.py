"""Shared prompts of every family in float64, where no rounding hides an error: log-probabilities and every gradient.

transformers and the heads compute some parts in float32 whatever the weights are. Here these casts go to float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.families.build import LoadFamily
from tests.shared_prompt import test_families
from tests.shared_prompt.test_families import ROWS, Case, build_case, gradients_of, padded
from vgpo.focus import visual_token_ids
from vgpo.policy.head import use_own_head
from vgpo.policy.scoring import score_rows
from vgpo.shared_prompt import PROVEN, OpenPrompts

pytest_plugins = ["tests.families.fixtures"]

ORDER = (2, 0, 5, 4, 1, 3, 6)  # rows of a group are not always neighbours
LIMIT = 1e-12
EVERY_TIME = ("gemma3", "qwen2_5_vl", "qwen3_5")  # the others are in the slow lane
FAMILIES = [family for family in PROVEN if not family.endswith("_moe")]  # torch has no grouped products in float64


@pytest.fixture
def all_in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Casts to float32 go to float64, and new tensors have it."""
    to, softmax = Tensor.to, F.softmax

    def wide(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    def to_wide(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return to(self, *map(wide, args), **{name: wide(value) for name, value in kwargs.items()})

    def softmax_wide(*args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        return softmax(*args, dtype=wide(dtype), **kwargs)

    monkeypatch.setattr(Tensor, "to", to_wide)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(F, "softmax", softmax_wide)
    monkeypatch.setattr(test_families, "add_fused_lm_head", lambda model, outputs: use_own_head(model))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def step(case: Case, size: int) -> float:
    """The largest difference of an optimizer step in micro-batches of `size` rows from separate rows."""
    rows, weights = padded(case, case.responses, ORDER), case.weights[list(ORDER)]
    expected = case.expected.logprobs[list(ORDER)].split(size)
    chunks, open_prompts, largest = rows.chunks(size), OpenPrompts(), 0.0
    for number, (chunk, weight) in enumerate(zip(chunks, weights.split(size), strict=True), 1):
        later = [one.prompts for one in chunks[number:]]
        scores = score_rows(
            case.model, chunk, visual_token_ids(case.model.config), share=True, similarity=False,
            open_prompts=open_prompts, later=later, agreed=lambda _: 2,
        )  # fmt: skip
        (scores.log_probs * weight).sum().backward()
        assert scores.log_probs.dtype == torch.float64
        largest = max(largest, float((scores.log_probs.detach() - expected[number - 1]).abs().max()))
    open_prompts.check_closed()
    gradients = gradients_of(case.model)
    assert gradients.keys() == case.gradients.keys()
    errors = [(gradients[name] - one).norm() / one.norm().clamp(min=1e-2) for name, one in case.gradients.items()]
    return max(largest, float(max(errors)))


@pytest.mark.usefixtures("all_in_float64")
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in EVERY_TIME else pytest.mark.slow) for name in FAMILIES]
)
def test_an_optimizer_step_is_exact_at_any_micro_batch(family: str, load_family: LoadFamily) -> None:
    case = build_case(load_family, family, torch.device("cpu"), torch.float64)
    for checkpointing in (False, True):
        if checkpointing:
            case.model.gradient_checkpointing_enable({"use_reentrant": False})
            case.model.train()
        for size in (len(ROWS), 3, 1):
            assert step(case, size) <= LIMIT, (checkpointing, size)
