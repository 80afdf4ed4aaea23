"""Faults planted into scoring, each of which the parity check finds; and a check that leaves nothing changed."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from tests.families.build import build_checkpoint
from tests.families.checks import Family, weights
from vgpo.focus import last_hidden_state
from vgpo.policy import measurement, prompts, scoring
from vgpo.policy.measurement import Gap, mask_problem
from vgpo.policy.parity import ParityError
from vgpo.policy.sampled import SampledSimilarity
from vgpo.recipe.checks import examine
from vgpo.shared_prompt import layers, passes, prefix
from vgpo.trl import VGPOTrainer

Make = Callable[..., VGPOTrainer]
HEAD, SAMPLED = "log-probs, single rows", "log-probs, sampled"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture
def make(checkpoints: Path, tmp_path: Path) -> Make:
    """A trainer of a family, which wants no image tokens."""

    def trainer(name: str = "qwen2_5_vl", **settings: Any) -> VGPOTrainer:
        if not (checkpoints / name).exists():
            build_checkpoint(name, checkpoints / name)
        family = Family(name, checkpoints, tmp_path)
        return family.trainer(tempted=False, **{"parity": "auto", **settings})

    return trainer


def gaps(trainer: VGPOTrainer) -> dict[str, Gap]:
    return {gap.name: gap for gap in trainer.check_parity().gaps}


def test_a_model_that_is_scored_as_it_is_passes(make: Make) -> None:
    measured = make(parity="strict").check_parity()
    assert measured.shares_prompts
    assert not measured.own_head
    assert measured.dtype == "float32"
    numbers = [gap for gap in measured.gaps if gap.tolerance]
    assert len(numbers) == 8
    assert all(gap.largest < 3e-5 for gap in numbers)
    assert measured.seconds < 3


# Faults


def scaled_head(trainer: VGPOTrainer) -> None:
    trainer.model.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits / 8)


def test_a_head_that_scales_otherwise_falls_back_to_the_models_own(make: Make, caplog: Any) -> None:
    trainer = make()
    scaled_head(trainer)
    with caplog.at_level(logging.WARNING, logger="vgpo"):
        measured = trainer.check_parity()
    assert measured.own_head
    assert all(gap.passes for gap in measured.gaps)
    assert "takes the memory of the logits" in caplog.text


def test_strict_stops_at_a_head_that_scales_otherwise(make: Make) -> None:
    trainer = make(parity="strict")
    scaled_head(trainer)
    with pytest.raises(ParityError, match=f"- {HEAD}: .*\n- {SAMPLED}"):
        trainer.check_parity()


def test_image_features_under_another_mask(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    shifted = lambda ids, tokens: torch.isin(ids, torch.tensor(tokens)).roll(1, -1)  # noqa: E731
    monkeypatch.setattr(scoring, "visual_token_mask", shifted)
    with pytest.raises(ParityError, match="- focus, single rows"):
        make(share_prompt="off").check_parity()
    monkeypatch.undo()
    monkeypatch.setattr(measurement, "visual_token_mask", shifted)
    with pytest.raises(ParityError, match=r"- image tokens: \d of \d positions that change"):
        make().check_parity()


def test_positions_of_responses_that_are_off_by_one(make: Make, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    note = passes.PromptPositions.note

    def shifted(self: passes.PromptPositions, *call: Any) -> None:
        note(self, *call)
        self.next = self.next + 1

    monkeypatch.setattr(passes.PromptPositions, "note", shifted)
    trainer = make()
    with caplog.at_level(logging.WARNING, logger="vgpo"):
        assert not trainer.check_parity().shares_prompts
    assert "share_prompt is off" in caplog.text
    assert not trainer._sharing.scoring
    with pytest.raises(ParityError, match="shared prompts"):
        make(parity="strict").check_parity()
    with pytest.raises(ValueError, match="share_prompt='on' is not possible: log-probs, shared prompts"):
        make(share_prompt="on").check_parity()


def test_focus_that_sampling_gets_wrong_comes_from_a_scoring_pass(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    observe = SampledSimilarity.observe

    def misread(recorder: Any, decoder: Any, args: Any, output: Any) -> None:
        observe(recorder, decoder, args, (last_hidden_state(output).roll(1, -1).abs(),))

    monkeypatch.setattr(SampledSimilarity, "observe", misread)
    trainer = make(**settings)
    trainer.model.train()
    assert trainer._samples_similarity
    assert not gaps(trainer)["focus, sampled"].passes
    assert not trainer._samples_similarity
    assert "comes from a scoring pass" in caplog.text
    with pytest.raises(ParityError, match="focus, sampled"):
        make(parity="strict").check_parity()


def test_a_layer_that_loses_the_prompt(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    after = layers.ResponseLayer._after

    def lost(self: layers.ResponseLayer, prompts: Any, own: torch.Tensor) -> torch.Tensor:
        return after(self, [0 * prompt for prompt in prompts], own)

    monkeypatch.setattr(layers.ResponseLayer, "_after", lost)
    trainer = make()
    assert not trainer.check_parity().shares_prompts
    assert "log-probs, shared prompts" in trainer._sharing.reason


def test_gradients_of_earlier_micro_batches_that_are_lost(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix.Prefix, "attached", lambda self, waiting: self.states)
    trainer = make()
    assert not trainer.check_parity().shares_prompts
    assert "gradients, shared prompts" in trainer._sharing.reason


def test_a_sliding_window_is_kept(make: Make) -> None:
    """Of 8 tokens, so that responses do not see all of their prompt."""
    trainer = make("llava_next_mistral")
    assert trainer.check_parity().shares_prompts


def test_a_response_that_sees_its_future(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "RESPONSE_TYPES", {})
    with pytest.raises(ParityError, match="- log-probs, sampled"):
        make("paligemma", numbers=(1, 2), per_device_train_batch_size=4).check_parity()


def test_padding_that_is_attended_to(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = scoring.padded_input

    def unmasked(*args: Any) -> scoring.ModelInput:
        inputs = padded(*args)
        return replace(inputs, attention_mask=torch.ones_like(inputs.attention_mask))

    monkeypatch.setattr(scoring, "padded_input", unmasked)
    with pytest.raises(ParityError, match=HEAD):
        make(share_prompt="off").check_parity()


@pytest.mark.parametrize("field", ["image_token_id", "vision_start_token_id"])
def test_a_token_of_images_that_is_not_banned(make: Make, field: str) -> None:
    trainer = make()
    token = getattr(trainer.model.config, field)
    suppressed = trainer.generation_config.suppress_tokens
    trainer.generation_config.suppress_tokens = [banned for banned in suppressed if banned != token]
    with pytest.raises(ParityError, match=rf"- special tokens: .* \(id {token}\)"):
        trainer.check_parity()


def test_a_special_token_that_no_config_names_and_no_response_can_hold(make: Make) -> None:
    trainer = make()
    token = trainer.processing_class.tokenizer.convert_tokens_to_ids("<|vision_end|>")
    trainer.model.register_forward_pre_hook(refusing(token), with_kwargs=True)
    with pytest.raises(ParityError, match=rf"contains '<\|vision_end\|>' \(id {token}\) cannot be scored"):
        trainer.check_parity()


def refusing(token: int) -> Callable[..., None]:
    """A hook that fails for two of a token, as a model that looks for a second image."""

    def refuse(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if (kwargs["input_ids"] == token).sum(1).max() > 1:
            raise LookupError("no such image")

    return refuse


def test_features_of_an_image_that_was_seen_before(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make()
    vlm, kept = trainer.model.model, {}
    features = vlm.get_image_features

    @functools.wraps(features)
    def stale(pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return features(kept.setdefault(len(pixel_values), pixel_values.clone()), *args, **kwargs)

    monkeypatch.setattr(vlm, "get_image_features", stale)
    with pytest.raises(ParityError, match="no decoder input changes with the pixels"):
        trainer.check_parity()


def test_a_forward_pass_that_fails_is_a_line(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise TypeError("no such field\nand a whole model")

    monkeypatch.setattr(measurement, "score_rows", broken)
    with pytest.raises(ParityError, match=f"- {HEAD}: cannot be measured: TypeError: no such field\n"):
        make().check_parity()


@pytest.mark.parametrize(
    ("ids", "changed", "masked", "problem"),
    [
        ([1, 7, 7, 2], [0, 1, 1, 0], [0, 1, 1, 0], ""),
        ([1, 7, 7, 2], [0, 1, 0, 0], [0, 1, 1, 0], ""),  # a separator is written with the placeholder
        ([1, 7, 7, 2], [0, 1, 1, 0], [0, 1, 1, 1], r"tokens \[2\] count as image tokens"),
        ([1, 7, 7, 2], [0, 1, 1, 1], [0, 1, 1, 0], "1 of 3 positions"),
        ([1, 7, 7, 2], [0, 0, 0, 0], [0, 1, 1, 0], "no decoder input changes"),
    ],
)
def test_the_mask_is_compared_with_what_changes(ids: Any, changed: Any, masked: Any, problem: str) -> None:
    found = mask_problem(ids, torch.tensor(changed).bool(), torch.tensor(masked).bool())
    assert bool(found) == bool(problem)
    if problem:
        assert re.search(problem, found)


# Nothing is left changed


@pytest.mark.train
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5"])
def test_a_run_with_the_check_is_the_run_without(make: Make, family: str, tmp_path: Path) -> None:
    ends = []
    for mode in ("auto", "off"):
        settings = {"parity": mode, "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
        trainer = make(family, output_dir=str(tmp_path / mode), **settings)
        trainer.train()
        resumed = make(family, output_dir=str(tmp_path / mode), **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / mode / "checkpoint-2"))
        ends.append([weights(trainer.model), weights(resumed.model)])
    (auto, auto_resumed), (off, off_resumed) = ends
    for name, weight in off.items():
        assert torch.equal(auto[name], weight), name
        assert torch.equal(auto_resumed[name], off_resumed[name]), name
        assert torch.equal(auto_resumed[name], weight), name


def test_modes_caches_and_random_numbers_are_as_before(make: Make) -> None:
    trainer = make()
    trainer.model.train()
    trainer.model.model.rope_deltas = before = torch.ones(1, 1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer.check_parity()
    assert torch.equal(torch.rand(3), expected)
    assert all(module.training for module in trainer.model.modules())
    assert trainer.model.model.rope_deltas is before
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


# vgpo doctor


def doctor(name: str, checkpoints: Path, out: Path, check: str = "parity") -> Any:
    if not (checkpoints / name).exists():
        build_checkpoint(name, checkpoints / name)
    setup = Family(name, checkpoints, out).setup((1, 2), parity="auto", per_device_train_batch_size=4)
    return examine(check, setup, {})


@pytest.mark.parametrize(
    ("name", "status", "found"),
    [
        ("qwen2_5_vl", "pass", "11 comparisons, largest difference"),
        ("granite_vision", "warn", "log-probabilities come from the model's own logits"),
        ("llama4", "fail", "log-probs, single rows: cannot be measured"),
        pytest.param(
            "ovis2", "pass", "11 comparisons, largest difference",
            marks=pytest.mark.skipif(
                Version(transformers.__version__) < Version("5.23"), reason="needs transformers 5.23"
            ),
        ),
    ],
)  # fmt: skip
def test_doctor_says_what_the_check_finds(
    name: str, status: str, found: str, checkpoints: Path, tmp_path: Path
) -> None:
    finding = doctor(name, checkpoints, tmp_path)
    assert finding.status == status
    assert found in finding.found


@pytest.mark.parametrize("name", ["mllama", "emu3", "florence2", "blip_2"])
def test_doctor_refuses_a_model_without_image_tokens_by_its_config(
    name: str, checkpoints: Path, tmp_path: Path
) -> None:
    finding = doctor(name, checkpoints, tmp_path, "processor")
    assert finding.status == "fail"
    assert "cannot be trained: its" in finding.found or "cannot be trained: it is" in finding.found


def test_doctor_leaves_the_model_as_it_was(checkpoints: Path, tmp_path: Path) -> None:
    if not (checkpoints / "internvl").exists():
        build_checkpoint("internvl", checkpoints / "internvl")
    setup = Family("internvl", checkpoints, tmp_path).setup((1, 2), parity="auto", per_device_train_batch_size=4)
    before = weights(setup.model)
    assert examine("parity", setup, {}).status == "pass"
    assert "forward" not in vars(setup.model)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(setup.model).items())


@pytest.mark.train
def test_rollouts_are_sampled_in_evaluation_mode(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(max_steps=1, parity="off")
    generate, modes = trainer.model.generate, []

    def noting(*args: Any, **kwargs: Any) -> Any:
        modes.append([module.training for module in trainer.model.modules()])
        return generate(*args, **kwargs)

    monkeypatch.setattr(trainer.model, "generate", noting)
    trainer.train()
    assert len(modes) == 1
    assert not any(modes[0])
    assert trainer.model.training
