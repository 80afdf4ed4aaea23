"""Recorded log-probabilities are those of the logits that `generate` sampled from."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from tests.shared_prompt.test_generation import EOS, FAMILIES, IMAGE, PAD, PROMPTS, G, collate, repeated, sampling
from tests.shared_prompt.test_generation import build_model as build_family
from vgpo.focus import record_similarity
from vgpo.policy.sampled import mean_gap, record_sampled, record_sampled_similarity
from vgpo.shared_prompt import decoding, prefill_once
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


def sampled_similarity(
    name: str, *, shared: bool, prompts: Any = PROMPTS, **options: Any
) -> tuple[torch.nn.Module, Any, Any, Any]:
    """A family's model, its responses, and what was recorded while it sampled them."""
    model = build_family(name)
    inputs = collate(name, prompts if shared else repeated(prompts))
    banned = [0, *range(3, 7)]  # padding, and what stands for images
    config = sampling(**options, suppress_tokens=banned, num_return_sequences=G if shared else 1)
    torch.manual_seed(7)
    with (
        torch.no_grad(),
        prefill_once(model) if shared else nullcontext(),
        record_sampled(model, 1.0) as log_probs,
        record_sampled_similarity(model, inputs["input_ids"] == IMAGE, log_probs) as similarity,
    ):
        sequences = model.generate(**inputs, generation_config=config)
    return model, sequences, similarity.columns, log_probs.log_probs(sequences[:, -1])


def scored(
    name: str, model: torch.nn.Module, sequences: torch.Tensor, prompts: Any = PROMPTS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity of the last prompt token and the responses, and log-probabilities, of a pass over both."""
    inputs = collate(name, repeated(prompts))
    width = inputs["input_ids"].shape[1]
    responses = sequences[:, width:]
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(responses)], 1)
    visual = inputs["input_ids"] == IMAGE
    inputs["input_ids"] = sequences
    if token_types := FAMILIES[name].token_types:
        inputs[token_types] = torch.cat([inputs[token_types], torch.zeros_like(responses)], 1)
    with torch.no_grad(), record_similarity(model, visual) as recorder:
        logits = model(**inputs).logits[:, width - 1 : -1]
    return recorder.columns, logits.log_softmax(-1).gather(-1, responses[..., None])[..., 0]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ends", [[EOS], list(range(1, 30))], ids=["full length", "ragged"])
@pytest.mark.parametrize("name", FAMILIES)
def test_similarity_of_sampled_tokens_is_that_of_a_pass_over_them(name, ends, shared, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "SMALLEST", 1)
    model, sequences, similarity, log_probs = sampled_similarity(name, shared=shared, eos_token_id=ends)
    expected, expected_log_probs = scored(name, model, sequences)
    width = expected.shape[1] - 1
    mask = torch.isin(sequences[:, -width:], torch.tensor(ends)).cumsum(1) <= 1  # and one token of padding
    mask &= sequences[:, -width:] != PAD
    assert mask[:, -1].any()
    assert similarity.shape == expected.shape
    for found, wanted in ((similarity[:, 1:], expected[:, 1:]), (similarity[:, :-1], expected[:, :-1])):
        torch.testing.assert_close(found[mask], wanted[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(log_probs[mask], expected_log_probs[mask], atol=1e-4, rtol=0)
    assert expected[:, 1:][mask].std() > 0.01
    assert expected[:, 0].std() > 0.01
    assert (similarity[G : 2 * G] == 0).all(), "a prompt without an image"


def test_one_token_is_left_to_a_scoring_pass() -> None:
    _, _, similarity, log_probs = sampled_similarity("qwen2_5_vl", shared=True, max_new_tokens=1)
    assert similarity is None
    assert log_probs.shape == (len(PROMPTS) * G, 1)


def test_recording_changes_no_token_and_leaves_the_model_as_it_was() -> None:
    model, sequences, *_ = sampled_similarity("qwen2_5_vl", shared=True)
    plain = build_family("qwen2_5_vl")
    torch.manual_seed(7)
    with prefill_once(plain):
        expected = plain.generate(
            **collate("qwen2_5_vl", PROMPTS),
            generation_config=sampling(suppress_tokens=[0, *range(3, 7)], num_return_sequences=G),
        )
    assert torch.equal(sequences, expected)
    assert "generate" not in vars(model)
    assert not model._forward_pre_hooks
    assert not model.get_decoder()._forward_hooks


@pytest.mark.parametrize("shared", [False, True])
def test_prompts_without_padding_need_no_mask(shared: bool) -> None:
    """transformers drops a mask of ones."""
    prompts = PROMPTS[:1]
    model, sequences, similarity, _ = sampled_similarity(
        "qwen2_5_vl", shared=shared, prompts=prompts, eos_token_id=[EOS]
    )
    expected, _ = scored("qwen2_5_vl", model, sequences, prompts)
    torch.testing.assert_close(similarity, expected, atol=1e-5, rtol=0)
