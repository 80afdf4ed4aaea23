"""Outputs of a frozen vision tower that are kept for several passes, against the tower run in each pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from trl.trainer.utils import add_fused_lm_head

from tests.families.build import LoadFamily, encode_prompts, picture
from vgpo.focus import visual_token_ids
from vgpo.policy.parts import freeze_parts, lora_targets, part_of_parameters
from vgpo.policy.prompts import EncodedPrompt, encoded_prompt, joined_media, prompt_columns
from vgpo.policy.scoring import Rows, Scores, score_rows
from vgpo.policy.vision_outputs import ENCODER_OUTPUTS, VisionOutputs, generating_from, why_run_tower

pytest_plugins = ["tests.families.fixtures"]

FAMILIES = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl", "llava_next", "llava_onevision", "smolvlm",
    "idefics3", "gemma3",
)  # fmt: skip
# Two images; one alone, in tiles where the family has them; none.
PROMPTS = [
    ("How many are there now?", [picture(56, 84, seed=1), picture(28, 56, seed=2)]),
    ("What is it", [picture(112, 56, seed=3)]),
    ("Why?", []),
]
PROMPT_OF_ROW = (0, 1, 0, 2, 1)
WIDTH = 5


def load(load_family: LoadFamily, family: str, **freeze: Any) -> tuple[nn.Module, list[EncodedPrompt], int]:
    model, processor = load_family(family)
    freeze_parts(model, ["vision", "projector"], **freeze)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    prompts = [
        encoded_prompt(fields["input_ids"][0].tolist(), len(images), fields, torch.device("cpu"))
        for (_, images), fields in zip(PROMPTS, encode_prompts(processor, PROMPTS), strict=True)
    ]
    return model, prompts, len(processor.tokenizer)


def rows_of(prompts: list[EncodedPrompt], vocabulary: int) -> Rows:
    of_rows = [prompts[number] for number in PROMPT_OF_ROW]
    columns = prompt_columns(of_rows, prompts[-1].token_ids[-1], torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    # Bytes come last in the vocabulary: no token of a response stands for an image.
    responses = torch.randint(vocabulary - 256, vocabulary, (len(of_rows), WIDTH), generator=generator)
    return Rows(
        torch.cat([columns["prompt_ids"], responses], dim=1),
        torch.cat([columns["prompt_mask"], torch.ones_like(responses)], dim=1),
        columns["prompt_ids"].shape[1],
        of_rows,
    )


def tower_calls(model: nn.Module) -> list[int]:
    """A list that grows with each call of the vision tower."""
    calls: list[int] = []
    model.get_encoder(modality="image").register_forward_hook(lambda *call: calls.append(1))
    return calls


def scored(model: nn.Module, rows: Rows, *, share: bool, **options: Any) -> tuple[Scores, dict[str, Tensor]]:
    ids = visual_token_ids(model.config)
    scores = score_rows(model, rows, ids, share=share, similarity=True, **options)
    scores.log_probs.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return scores, gradients


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_a_tower_in_each_pass(
    family: str, share: bool, load_family: LoadFamily
) -> None:
    model, prompts, vocabulary = load(load_family, family)
    assert why_run_tower(model) is None
    rows, kept, calls = rows_of(prompts, vocabulary), VisionOutputs(model), tower_calls(model)
    expected, expected_gradients = scored(model, rows, share=share)
    calls.clear()
    for _ in range(2):
        scores, gradients = scored(model, rows, share=share, media=kept.media)
        # A tower may round otherwise for the images of one prompt than for those of several.
        torch.testing.assert_close(scores.log_probs, expected.log_probs, rtol=0, atol=5e-6)
        torch.testing.assert_close(scores.similarity, expected.similarity, rtol=0, atol=1e-6)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm().clamp(min=1), name
    assert len(calls) == 2  # prompts with images


@pytest.mark.parametrize("family", FAMILIES)
def test_one_prompt_gives_the_same_bits(family: str, load_family: LoadFamily) -> None:
    model, prompts, vocabulary = load(load_family, family)
    rows = rows_of(prompts, vocabulary).take([1])
    with torch.no_grad():
        found, expected = (
            score_rows(model, rows, visual_token_ids(model.config), share=False, similarity=True, media=media)
            for media in (VisionOutputs(model).media, joined_media)
        )
    assert torch.equal(found.log_probs, expected.log_probs)
    assert torch.equal(found.similarity, expected.similarity)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl", "llava_next"])
def test_generation_takes_them(family: str, load_family: LoadFamily) -> None:
    model, prompts, _ = load(load_family, family)
    with_images = prompts[:2]
    columns = prompt_columns(with_images, prompts[-1].token_ids[-1], torch.device("cpu"))
    inputs = {"input_ids": columns["prompt_ids"], "attention_mask": columns["prompt_mask"], "max_new_tokens": 4}
    expected = model.generate(**inputs, **joined_media(with_images), do_sample=False)
    kept = VisionOutputs(model)
    kept.media(with_images)
    calls = tower_calls(model)
    with generating_from(model, kept.media(with_images)) as fields:
        assert not [name for name in fields if "pixel" in name]
        assert torch.equal(model.generate(**inputs, **fields, do_sample=False), expected)
    assert not calls
    assert "generate" not in vars(model)


def test_a_pass_gets_a_dictionary_of_its_own(load_family: LoadFamily) -> None:
    """transformers writes into it."""
    model, prompts, _ = load(load_family, "qwen2_5_vl")
    kept = VisionOutputs(model)
    first = kept.media(prompts)
    first[ENCODER_OUTPUTS].clear()
    assert "image" in kept.media(prompts)[ENCODER_OUTPUTS]
    assert kept.media(prompts[2:]) == {}


def test_what_is_trained_runs_each_time(load_family: LoadFamily) -> None:
    model, _ = load_family("qwen2_5_vl")
    assert "are trained" in why_run_tower(model)
    freeze_parts(model, ["vision"])
    assert "are trained" in why_run_tower(model)
    freeze_parts(model, ["vision", "projector"])
    assert why_run_tower(model) is None
    lora = get_peft_model(load_family("qwen2_5_vl")[0], LoraConfig(target_modules=["q_proj"]))
    trained = {part_of_parameters(lora)[name] for name, p in lora.named_parameters() if p.requires_grad}
    assert trained == {"language_model"}
    assert why_run_tower(lora) is None
    model = load_family("qwen2_5_vl")[0]
    of_tower = LoraConfig(target_modules=lora_targets(model, vision=True))
    assert "are trained" in why_run_tower(get_peft_model(model, of_tower))


def test_a_tower_with_dropout_runs_each_time(load_family: LoadFamily) -> None:
    model, _ = load_family("internvl")
    freeze_parts(model, ["vision", "projector"])
    tower = model.get_encoder(modality="image")
    tower.drop = nn.Dropout(0.1)
    assert "dropout" in why_run_tower(model)
