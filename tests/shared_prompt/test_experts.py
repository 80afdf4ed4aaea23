"""The load-balancing loss of experts over shared prompts, against that of separate rows, at any micro-batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.families.build import LoadFamily
from tests.shared_prompt.test_families import Case, build_case, gradients_of, padded
from vgpo.focus import visual_token_ids
from vgpo.policy.experts import balancing_loss
from vgpo.policy.scoring import score_rows
from vgpo.shared_prompt import OpenPrompts

pytest_plugins = ["tests.families.fixtures"]

ROWS = (2, 0, 5, 4, 1, 3, 6)  # of a group, not always neighbours
WEIGHT = 10.0  # of the loss, whose gradient is small beside that of the log-probabilities
LIMITS = {"qwen3_vl_moe": 1e-5, "qwen3_5_moe": 2e-3}  # the chunked rule of linear attention rounds


def step(case: Case, size: int, *, share: bool) -> tuple[list[float], dict[str, Tensor]]:
    """The balancing loss of each micro-batch of a step, and the gradient of every parameter."""
    rows, weights = padded(case, case.responses, ROWS), case.weights[list(ROWS)]
    chunks, open_prompts, losses = rows.chunks(size), OpenPrompts(), []
    for number, (chunk, weight) in enumerate(zip(chunks, weights.split(size), strict=True), 1):
        scores = score_rows(
            case.model, chunk, visual_token_ids(case.model.config), share=share, similarity=False,
            open_prompts=open_prompts, later=[later.prompts for later in chunks[number:]], output_router_logits=True,
        )  # fmt: skip
        ((scores.log_probs * weight).sum() + WEIGHT * scores.aux_loss).backward()
        losses.append(float(scores.aux_loss.detach()))
    open_prompts.check_closed()
    return losses, gradients_of(case.model)


@pytest.mark.parametrize("family", LIMITS)
def test_prompt_tokens_count_once_for_each_response(family: str, load_family: LoadFamily) -> None:
    case = build_case(load_family, family, torch.device("cpu"), torch.float32)
    for size in (len(ROWS), 3, 1):
        losses, gradients = step(case, size, share=True)
        expected, expected_gradients = step(case, size, share=False)
        assert losses == pytest.approx(expected, rel=1e-5)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            error = (gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-2)
            assert error <= LIMITS[family], (size, name, float(error))


def test_balancing_loss_by_hand() -> None:
    class Config:
        num_experts, num_experts_per_tok = 2, 1

    # One token goes to the first expert with probability 0.75, the other, which counts twice, to the second with 0.9.
    logits = [(torch.tensor([[0.75, 0.25]]).log(),), (torch.tensor([[0.1, 0.9], [0.5, 0.5]]).log(),)]
    found = balancing_loss(Config, logits, [torch.tensor([1]), torch.tensor([2, 0])])
    shares, probabilities = torch.tensor([1 / 3, 2 / 3]), torch.tensor([0.95 / 3, 2.05 / 3])
    torch.testing.assert_close(found, 2 * (shares * probabilities).sum())
