"""Recorded log-probabilities are those of the logits that `generate` sampled from."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from vgpo.policy.sampled import mean_gap, record_sampled
from vgpo.shared_prompt import prefill_once
from vgpo.toy.model import build_model, build_processor

NEW = 5


@pytest.fixture
def model() -> torch.nn.Module:
    return build_model(build_processor().tokenizer, seed=1).eval()


def naive(model: torch.nn.Module, sequences: torch.Tensor, prompt: int, temperature: float) -> list[list[float]]:
    """One forward pass per token, each over the whole row so far."""
    found = []
    for row in sequences:
        numbers = []
        for end in range(prompt, len(row)):
            logits = model(input_ids=row[None, :end]).logits[0, -1] / temperature
            numbers.append(float(logits.log_softmax(-1)[row[end]]))
        found.append(numbers)
    return found


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_each_sampled_token_has_its_log_probability(model: torch.nn.Module, shared: bool, temperature: float) -> None:
    torch.manual_seed(0)
    prompts = torch.randint(20, 60, (2, 6))
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=5, top_p=0.9, max_new_tokens=NEW, min_new_tokens=NEW,
        suppress_tokens=[21, 22], pad_token_id=0, eos_token_id=1, num_return_sequences=3 if shared else 1,
    )  # fmt: skip
    with record_sampled(model, temperature) as sampled:
        if shared:
            with prefill_once(model):
                sequences = model.generate(input_ids=prompts, generation_config=config)
        else:
            sequences = model.generate(input_ids=prompts, generation_config=config)
    found = sampled.log_probs(sequences[:, -1])
    assert found.shape == (6 if shared else 2, NEW)
    expected = torch.tensor(naive(model, sequences, 6, temperature))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not model._forward_hooks


def test_the_gap_is_the_mean_over_tokens() -> None:
    scored, sampled = torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[1.5, 2.0], [2.0, 0.0]])
    gap = mean_gap(scored, sampled, torch.tensor([[1, 1], [1, 0]]))
    assert (gap.total / gap.number).item() == pytest.approx(1.5 / 3)
