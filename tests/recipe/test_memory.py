"""The estimate of memory: by hand, and against the tensors that a pass of the decoder really allocates."""

import dataclasses
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import trl.trainer.utils
from rich.console import Console
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from vgpo.focus import decoder_of
from vgpo.policy.parts import freeze_parts
from vgpo.recipe import memory
from vgpo.recipe.memory import MemoryEstimate, memory_estimate, shards_of, tokens_per_micro_batch
from vgpo.recipe.recipe import load_recipe
from vgpo.toy.model import build_model, build_processor
from vgpo.trl import VGPOConfig

SIZES = """
num_generations: 4
per_device_train_batch_size: 8
max_completion_length: 10
"""
WriteRecipe = Callable[[str], Path]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build_model(build_processor().tokenizer, seed=1)


def config_of(write_recipe: WriteRecipe, *words: str) -> VGPOConfig:
    return load_recipe(write_recipe(SIZES), words).config


def test_tokens_by_hand(write_recipe: WriteRecipe) -> None:
    config = config_of(write_recipe)
    # 8 rollouts of 2 prompts of 100 tokens, responses of 10
    assert tokens_per_micro_batch(config, 100, shares_prompts=True) == (2 * 100 + 80, 80)
    assert tokens_per_micro_batch(config, 100, shares_prompts=False) == (8 * 100 + 80, 80)


def test_one_device_by_hand(write_recipe: WriteRecipe, model: PreTrainedModel) -> None:
    estimate = memory_estimate(model, config_of(write_recipe), prompt_tokens=100, shares_prompts=True)
    size = sum(p.numel() for p in model.parameters())
    assert estimate == MemoryEstimate(
        weights=4 * size,
        copies=0,
        gradients=4 * size,
        optimizer=8 * size,
        activations=280 * 3 * 4 * (10 * 128 + 4 * 384),  # tokens, layers, bytes, hidden and intermediate size
        head=4 * (80 * 382 + 80 * 128 + 382 * 128),  # a tile of logits, gradients of states and of weights
    )
    assert estimate.total == 16 * size + estimate.activations + estimate.head


def test_tiles_of_the_head_are_those_of_trl() -> None:
    assert memory.VOCABULARY_CHUNK_SIZE == trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer(
    write_recipe: WriteRecipe, model: PreTrainedModel
) -> None:
    config = config_of(write_recipe, "--gradient_checkpointing", "true")
    estimate = memory_estimate(model, config, prompt_tokens=100, shares_prompts=True)
    assert estimate.activations == 280 * 4 * (3 * 128 + 10 * 128 + 4 * 384)


def test_shards_hold_their_share_and_two_layers(write_recipe: WriteRecipe, model: PreTrainedModel) -> None:
    config = config_of(write_recipe, "--bf16", "true")
    estimate = memory_estimate(model, config, prompt_tokens=100, shares_prompts=True, shards=8)
    size = sum(p.numel() for p in model.parameters())
    layer = sum(p.numel() for p in decoder_of(model).layers[0].parameters())
    assert (estimate.weights, estimate.gradients, estimate.optimizer) == (4 * size // 8, 4 * size // 8, size)
    assert estimate.copies == 2 * (2 * layer + 382 * 128)  # embeddings, tied to the head


def test_frozen_parts_have_weights_only(write_recipe: WriteRecipe) -> None:
    model = build_model(build_processor().tokenizer, seed=1)
    freeze_parts(model, ["vision", "projector"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = config_of(write_recipe, "--bf16", "true")
    estimate = memory_estimate(model, config, prompt_tokens=100, shares_prompts=True)
    assert (estimate.gradients, estimate.optimizer, estimate.copies) == (4 * trained, 8 * trained, 2 * trained)
    assert estimate.weights == 4 * sum(p.numel() for p in model.parameters())
    sgd = config_of(write_recipe, "--optim", "sgd")
    assert memory_estimate(model, sgd, prompt_tokens=100, shares_prompts=True).optimizer == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_that_a_pass_allocates(
    write_recipe: WriteRecipe, model: PreTrainedModel, checkpointing: bool
) -> None:
    """Peak of the tensors that forward and backward of the decoder allocate, without the gradients."""
    num_tokens = 1600  # 8 rollouts, each of a prompt of 190 and a response of 10
    config = config_of(write_recipe, "--gradient_checkpointing", str(checkpointing).lower())
    expected = memory_estimate(model, config, prompt_tokens=190, shares_prompts=False).activations
    decoder = decoder_of(model)
    decoder.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    hidden = torch.randn(8, num_tokens // 8, 128, requires_grad=True)
    for _ in range(2):  # gradients are there before the second pass
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            decoder(inputs_embeds=hidden, use_cache=False).last_hidden_state.square().sum().backward()
    model.gradient_checkpointing_disable()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    measured = max(itertools.accumulate(changes))
    assert 0.75 < measured / expected < 1.6  # 1.53 with torch 2.8 and transformers 5.10, 1.18 with the lock


def test_replicas_hold_their_gradients_twice(
    write_recipe: WriteRecipe, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(write_recipe)
    alone = memory_estimate(model, config, prompt_tokens=100, shares_prompts=True)
    monkeypatch.setattr(VGPOConfig, "world_size", 2)
    beside_another = memory_estimate(model, config, prompt_tokens=100, shares_prompts=True)
    assert beside_another == dataclasses.replace(alone, gradients=2 * alone.gradients)


def test_sharding_is_read_off_recipe_and_launcher(write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(write_recipe)
    monkeypatch.setattr(VGPOConfig, "world_size", 8)
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert shards_of(config) == 1
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert shards_of(config) == 8


def test_the_table_says_what_is_not_counted(write_recipe: WriteRecipe, model: PreTrainedModel) -> None:
    console = Console(width=100, file=io.StringIO())
    console.print(memory_estimate(model, config_of(write_recipe), prompt_tokens=100, shares_prompts=True).table())
    text = console.file.getvalue()
    assert "memory per device, estimated" in text
    assert "not counted: vision tower's activations" in text


def test_the_widest_of_layers_of_unlike_widths_counts(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3n's text config has a list of widths."""
    text = model.config.get_text_config()
    one = memory.decoder_bytes_per_token(model, 4, checkpointing=True)
    monkeypatch.setitem(vars(text), "intermediate_size", [text.intermediate_size // 2, text.intermediate_size])
    assert memory.decoder_bytes_per_token(model, 4, checkpointing=True) == one
