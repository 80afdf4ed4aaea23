"""What a family must be able to do: functions that fail where it cannot.

The support table of the documentation is made of what they find (`tests.families.table`).
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset, Features, Image, List, Value
from peft import PeftModel
from rich.console import Console
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    BatchFeature,
    PreTrainedModel,
    ProcessorMixin,
    TrainerCallback,
)
from trl import ModelConfig
from trl.trainer.utils import add_fused_lm_head

from tests.families.build import encode_prompts, picture
from tests.families.mixed_worker import check_two_processes
from vgpo.data import to_prompts
from vgpo.focus import banned_token_ids, visual_token_mask
from vgpo.policy.scoring import Rows, score_rows
from vgpo.recipe.loading import check_image_token, load_model, load_processor
from vgpo.recipe.recipe import Recipe
from vgpo.recipe.run_arguments import RunArguments
from vgpo.recipe.setup import Setup
from vgpo.recipe.train import build_trainer
from vgpo.report.training import RunCallback
from vgpo.run import RunFolder
from vgpo.shared_prompt import why_not_shared
from vgpo.training.batches import Batch
from vgpo.training.passes import ScoringPass
from vgpo.trl import VGPOConfig, VGPOTrainer

GROUP = 2
# Every batch has a row of each: text only, and one, two and three images.
NUM_PICTURES = (0, 1, 2, 3)
SIZES = ((56, 84), (28, 56), (112, 56))
NUM_DECODER_LAYERS = 3
MLP_LAYERS = 3  # linear layers that every family has in every layer
TEMPTATION = 50.0  # a logit that would be sampled for certain
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 1,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": GROUP * len(NUM_PICTURES),
    "gradient_accumulation_steps": 1,
    "num_generations": GROUP,
    "max_completion_length": 6,
    "log_rollouts_steps": 0,
    "gradient_checkpointing": False,
    "bf16": False,
    "parity": "off",  # the models are tempted to write image tokens, which their own forward alone does
    "dataloader_pin_memory": False,
}
# The parts as a reader of the parameters' names would tell them, the first that fits.
PART_BY_NAME = {
    "projector": r"\.merger\.|\.deepstack_merger_list\.|multi_modal_projector|\.connector\.|image_newline",
    "vision": r"\.visual\.|vision_tower|\.vision_model\.",
    "language_model": r"language_model|text_model",
    "head": r"lm_head",
}


def part_by_name(parameter: str) -> str:
    return next(part for part, pattern in PART_BY_NAME.items() if re.search(pattern, parameter))


def rows(numbers: Sequence[int] = NUM_PICTURES) -> Dataset:
    """A row with each number of images, as users have them."""
    features = Features({"problem": Value("string"), "images": List(Image()), "answer": Value("string")})
    return Dataset.from_list([row(number) for number in numbers], features=features)


def row(num_pictures: int) -> dict[str, Any]:
    pictures = [picture(*size, seed=10 * num_pictures + i) for i, size in enumerate(SIZES[:num_pictures])]
    return {"problem": "<image>" * num_pictures + question(num_pictures), "images": pictures, "answer": "2"}


def question(num_pictures: int) -> str:
    """Prompts without images differ in length too."""
    return "How many" + " are there" * num_pictures + "?"


def alternating(completions: list[Any], **columns: Any) -> list[float]:
    """Rollouts of a group always differ in reward, so that every step trains."""
    return [float(i % 2) for i in range(len(completions))]


class NoteGradients(TrainerCallback):
    """Names of the parameters that had a gradient in any step."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.names |= {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@dataclass(frozen=True)
class Run:
    """A training that is over.

    Args:
        trainer: what trained.
        batches: each micro-batch after it was shaped, with the similarity that its pass recorded.
        before: weights at the start, by name.
        after: weights at the end, by name.
        with_gradient: parameters that had a gradient.
    """

    trainer: VGPOTrainer
    batches: list[Batch]
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    with_gradient: set[str]

    @property
    def changed(self) -> set[str]:
        return {name for name, weight in self.after.items() if not torch.equal(weight, self.before[name])}

    def checkpoint(self, step: int) -> Path:
        return Path(self.trainer.args.output_dir, f"checkpoint-{step}")


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def watch(trainer: VGPOTrainer) -> list[Batch]:
    """The list of shaped micro-batches, which grows while the trainer runs."""
    batches: list[Batch] = []
    shape = trainer._shape_update

    def shape_and_keep(scoring: ScoringPass) -> None:
        shape(scoring)
        batches.append({**scoring.captured[-1], **scoring.update})

    trainer._shape_update = shape_and_keep
    return batches


def tempt(trainer: VGPOTrainer) -> None:
    """Let the model want nothing more than to write an image token."""
    head = trainer.model.get_output_embeddings()
    bonus = torch.zeros(head.weight.shape[0])
    bonus[banned_token_ids(trainer.model.config)] = TEMPTATION
    head.register_forward_hook(lambda module, args, logits: logits + bonus.to(logits.dtype))


def watched_run(trainer: VGPOTrainer, checkpoint: Path | None = None) -> Run:
    """Train, from the start or from a checkpoint."""
    gradients = NoteGradients()
    trainer.add_callback(gradients)
    batches = watch(trainer)
    before = weights(trainer.model)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return Run(trainer, batches, before, weights(trainer.model), gradients.names)


@torch.no_grad()
def disturb(model: torch.nn.Module) -> None:
    """Move every weight that is trained, so that one which a load leaves out shows."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(1.0)


class PlainRow(NamedTuple):
    """What one unpadded forward pass tells of a prompt of P tokens and its response of T.

    Args:
        received: where image features took the place of the token's embedding; bool (P,).
        log_probs: of the response (T,).
        similarity: cosine of the response's last hidden states with the mean over `received` (T,).
    """

    received: Tensor
    log_probs: Tensor
    similarity: Tensor


@torch.no_grad()
def plain_row(model: PreTrainedModel, prompt: BatchFeature, response: Tensor) -> PlainRow:
    """By plain code, out of `output_hidden_states`."""
    length = prompt["input_ids"].shape[1]
    ids = torch.cat([prompt["input_ids"][0], response])[None]
    inputs = {**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in prompt:
            inputs[name] = torch.nn.functional.pad(prompt[name], (0, len(response)))
    embeddings: list[Tensor] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: embeddings.append(kwargs["inputs_embeds"][0]), with_kwargs=True
    )
    output = model(**inputs, output_hidden_states=True, use_cache=False)
    handle.remove()
    received = (embeddings[0] != model.get_input_embeddings()(ids)[0]).any(-1)[:length]
    states = output.hidden_states[-1][0]
    log_probs = output.logits[0, length - 1 : -1].float().log_softmax(-1).gather(-1, response[:, None])[:, 0]
    similarity = torch.cosine_similarity(states[length:], states[:length][received].mean(0, keepdim=True), dim=-1)
    return PlainRow(received, log_probs, similarity)


class Family:
    """A checkpoint, and the trainings that checks look at, each run when it is first asked for.

    Args:
        name: its `model_type`.
        checkpoints: the folder that holds the checkpoint under this name.
        out: where trainings write.
    """

    def __init__(self, name: str, checkpoints: Path, out: Path) -> None:
        self.name = name
        self.checkpoints = checkpoints
        self.out = out
        self.console = Console(file=io.StringIO(), width=100)

    def model_config(self, **settings: Any) -> ModelConfig:
        path = str(self.checkpoints / self.name)
        return ModelConfig(model_name_or_path=path, dtype="float32", lora_r=4, lora_dropout=0.0, **settings)

    @property
    def model_type(self) -> str:
        return str(
            json.loads((self.checkpoints / self.name / "config.json").read_text(encoding="utf-8"))["model_type"]
        )

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """Model and processor by the code of `vgpo train`."""
        config = self.model_config()
        model = load_model(config, trust_remote_code=False).eval()
        processor = load_processor(config, trust_remote_code=False, min_pixels=None, max_pixels=None)
        check_image_token(model, processor)
        return model, processor

    def trainer(
        self,
        *,
        lora: bool = False,
        lora_vision: bool = False,
        tempted: bool = True,
        numbers: Sequence[int] = NUM_PICTURES,
        **settings: Any,
    ) -> VGPOTrainer:
        """The trainer of `vgpo train`, with a model that wants image tokens."""
        setup = self.setup(numbers, lora=lora, lora_vision=lora_vision, **settings)
        trainer = build_trainer(setup, RunFolder(self.out), self.console)
        trainer.remove_callback(RunCallback)
        if tempted:
            tempt(trainer)
        return trainer

    def setup(
        self, numbers: Sequence[int], *, lora: bool = False, lora_vision: bool = False, **settings: Any
    ) -> Setup:
        """The parts of a run on rows with these numbers of images."""
        source = f"{alternating.__module__}:{alternating.__name__}"
        recipe = Recipe(
            run=RunArguments(train_data="in memory", rewards=[source], lora_vision=lora_vision),
            config=VGPOConfig(**{"output_dir": str(self.out), **SETTINGS, **settings}),
            model=self.model_config(use_peft=lora),
        )
        setup = Setup(recipe, self.out)
        setup.prompts = to_prompts(rows(numbers))
        return setup

    def train(self, **settings: Any) -> Run:
        """Train from the start; settings are those of `trainer`."""
        return watched_run(self.trainer(**settings))

    def train_and_save(self, name: str, **settings: Any) -> Run:
        """Train and keep a checkpoint of each step."""
        folder = tempfile.mkdtemp(dir=self.out, prefix=f"{self.name} {name} ")
        return self.train(output_dir=folder, save_strategy="steps", save_steps=1, **settings)

    @cached_property
    def plain(self) -> Run:
        """Everything is trained, in float32."""
        return self.train_and_save("plain")

    @cached_property
    def checkpointed(self) -> Run:
        return self.train(gradient_checkpointing=True)

    @cached_property
    def half(self) -> Run:
        """In bfloat16, with a frozen vision tower."""
        return self.train(gradient_checkpointing=True, bf16=True, freeze=["vision"])

    @cached_property
    def vision_only(self) -> Run:
        return self.train(freeze=["projector", "language_model"])

    @cached_property
    def lora(self) -> Run:
        return self.train_and_save("lora", lora=True)

    @cached_property
    def plain_rows(self) -> list[PlainRow]:
        """Of each row of the first micro-batch, whose pass was one of the checkpoint's own weights."""
        model, processor = self.load()
        [batch, *_] = self.plain.batches
        plain = []
        for prompt, index, ids, mask in zip(
            batch["prompts"],
            batch["row_index"].tolist(),
            batch["completion_ids"],
            batch["completion_mask"].bool(),
            strict=True,
        ):
            [encoded] = encode_prompts(processor, [(question(index), row(index)["images"])])
            assert encoded["input_ids"][0].tolist() == prompt.token_ids
            plain.append(plain_row(model, encoded, ids[mask]))
        return plain


def trains(family: Family) -> None:
    """Two steps change weights of every part, and leave all finite."""
    run = family.plain
    assert run.trainer.state.global_step == 2
    assert len(run.batches) == 2
    assert all(weight.isfinite().all() for weight in run.after.values())
    assert run.changed <= run.with_gradient
    assert {part_by_name(name) for name in run.changed} == {part_by_name(name) for name in run.before}


def reads_pictures(family: Family) -> None:
    """0 to 3 images in the rows of one batch; the method leaves a row without any alone."""
    for batch in family.plain.batches:
        numbers = [prompt.num_images for prompt in batch["prompts"]]
        assert sorted(set(numbers)) == list(NUM_PICTURES)
        assert numbers == batch["row_index"].tolist()
        assert batch["visual_rows"].tolist() == [number > 0 for number in numbers]
        text, mask = ~batch["visual_rows"], batch["completion_mask"].bool()
        scalar = batch["scalar_advantages"][:, None].expand(mask.shape)
        assert torch.equal(batch["advantages"][text][mask[text]], scalar[text][mask[text]])
        pictures = ~text
        assert not torch.equal(batch["advantages"][pictures][mask[pictures]], scalar[pictures][mask[pictures]])


def measures_focus(family: Family) -> None:
    """Similarities are those of separate unpadded rows by `output_hidden_states`."""
    [batch, *_] = family.plain.batches
    for plain, similarity, mask, visual in zip(
        family.plain_rows, batch["similarity"], batch["completion_mask"].bool(), batch["visual_rows"], strict=True
    ):
        if visual:
            torch.testing.assert_close(similarity[mask], plain.similarity, rtol=0, atol=1e-5)


def knows_visual_tokens(family: Family) -> None:
    """The visual mask has exactly the tokens that received image features."""
    [batch, *_] = family.plain.batches
    for plain, prompt in zip(family.plain_rows, batch["prompts"], strict=True):
        masked = visual_token_mask(torch.tensor(prompt.token_ids), family.plain.trainer._visual_token_ids)
        assert torch.equal(masked, plain.received)
        assert plain.received.any() == (prompt.num_images > 0)


def pads_left(family: Family) -> None:
    """Rows that are padded to a batch give the log-probabilities of unpadded ones."""
    [batch, *_] = family.plain.batches
    prompt_mask = batch["prompt_mask"].bool()
    assert (prompt_mask[:, 1:] >= prompt_mask[:, :-1]).all()
    assert not prompt_mask.all()
    model, _ = family.load()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    padded = Rows(
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        prompt_mask.shape[1],
        batch["prompts"],
    )
    with torch.no_grad():
        token_ids = family.plain.trainer._visual_token_ids
        scores = score_rows(model, padded, token_ids, share=False, similarity=False)
    for plain, log_probs, mask in zip(
        family.plain_rows, scores.log_probs, batch["completion_mask"].bool(), strict=True
    ):
        # Recurrent layers round otherwise at another width.
        torch.testing.assert_close(log_probs[mask], plain.log_probs, rtol=1e-4, atol=1e-5)


def bans_picture_tokens(family: Family) -> None:
    """No rollout holds an image token, however much the model wants to write one."""
    banned = banned_token_ids(family.plain.trainer.model.config)
    assert banned
    for batch in family.plain.batches:
        assert not visual_token_mask(batch["completion_ids"], banned).any()


def shares_prompts(family: Family) -> None:
    """A prompt is computed once for its group."""
    assert family.plain.trainer._sharing.scoring, why_not_shared(family.plain.trainer.model)


def checkpoints_activations(family: Family) -> None:
    """Gradient checkpointing gives the same weights."""
    assert family.checkpointed.trainer.model.is_gradient_checkpointing
    assert not family.plain.trainer.model.is_gradient_checkpointing
    for name, weight in family.plain.after.items():
        torch.testing.assert_close(family.checkpointed.after[name], weight, rtol=0, atol=1e-6, msg=name)


def trains_in_bfloat16(family: Family) -> None:
    """Mixed precision changes weights and leaves all finite."""
    run = family.half
    assert run.trainer.accelerator.mixed_precision == "bf16"
    assert all(weight.isfinite().all() for weight in run.after.values())
    assert {"projector", "language_model"} <= {part_by_name(name) for name in run.changed}


def freezes(family: Family) -> None:
    """Parameters of a frozen part keep every bit and get no gradient; all others are trained."""
    for run, parts in ((family.half, {"vision"}), (family.vision_only, {"projector", "language_model", "head"})):
        frozen = {name for name in run.before if part_by_name(name) in parts}
        assert frozen
        assert not run.with_gradient & frozen
        assert run.changed == family.plain.changed - frozen


def adapts_the_decoder(family: Family) -> None:
    """LoRA is in every linear layer of the decoder, nothing else is trained, and the start of the run says so."""
    run = family.lora
    printed = family.console.file.getvalue().rpartition("parameters")[2]
    assert re.search(r"^vision +0 .* 0\.00%", printed, re.MULTILINE)
    trained = {name for name, parameter in run.trainer.model.named_parameters() if parameter.requires_grad}
    layers = {name.partition(".lora_")[0] for name in trained}
    assert all(".lora_" in name and part_by_name(name) == "language_model" for name in trained)
    linear = {name for name, module in family.load()[0].named_modules() if isinstance(module, torch.nn.Linear)}
    assert len(layers) >= NUM_DECODER_LAYERS * MLP_LAYERS
    assert {layer.removeprefix("base_model.model.") for layer in layers} == {
        name for name in linear if part_by_name(name) == "language_model"
    }
    assert run.changed == run.with_gradient == trained


def adapts_vision(family: Family) -> None:
    """LoRA on request in the vision tower and in the linear layers of the projector too."""
    run = family.train(lora=True, lora_vision=True, max_steps=1)
    trained = {name for name, parameter in run.trainer.model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name for name in trained)
    projector = {
        name
        for name, module in family.load()[0].named_modules()
        if isinstance(module, torch.nn.Linear) and part_by_name(f"{name}.weight") == "projector"
    }
    expected = {"vision", "language_model"} | ({"projector"} if projector else set())
    assert {part_by_name(name) for name in trained} == expected
    # The other factor has no gradient as long as this one is zero.
    assert {part_by_name(name) for name in run.changed if ".lora_B." in name} == expected


def resumes(family: Family) -> None:
    """A run that goes on after its first step ends as the one that was not; `from_pretrained` loads its checkpoint."""
    same_after_resume(family.plain, family.trainer())
    path = family.plain.checkpoint(2)
    model, report = AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal(weights(model), family.plain.after)


def resumes_adapters(family: Family) -> None:
    """As `resumes`, for a checkpoint that holds the adapters alone."""
    same_after_resume(family.lora, family.trainer(lora=True))
    model = PeftModel.from_pretrained(family.load()[0], family.lora.checkpoint(2))
    assert_equal(weights(model), family.lora.after)


def same_after_resume(whole: Run, trainer: VGPOTrainer) -> None:
    """Let a new trainer resume after the first step of a run, and compare the results."""
    disturb(trainer.model)
    resumed = watched_run(trainer, whole.checkpoint(1))
    assert_equal(resumed.after, whole.after)
    [batch], [_, expected] = resumed.batches, whole.batches
    for name in ("row_index", "completion_ids", "rewards", "advantages"):
        assert torch.equal(batch[name], expected[name]), name


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Names and every bit."""
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(actual[name], weight), name


def mixes_over_processes(family: Family) -> None:
    """Two processes that share the parameters (FSDP2), one with images and one without, equal one process."""
    check_two_processes(family.checkpoints / family.name, family.out / f"{family.name} two processes")


CHECKS: dict[str, Callable[[Family], None]] = {
    "two steps": trains,
    "0-3 images": reads_pictures,
    "focus": measures_focus,
    "visual mask": knows_visual_tokens,
    "left padding": pads_left,
    "image tokens banned": bans_picture_tokens,
    "shared prompt": shares_prompts,
    "gradient checkpointing": checkpoints_activations,
    "bf16": trains_in_bfloat16,
    "freeze": freezes,
    "LoRA": adapts_the_decoder,
    "LoRA in vision": adapts_vision,
    "resume": resumes,
    "resume with LoRA": resumes_adapters,
    "two processes, one without images": mixes_over_processes,
}
# What is known not to work; a check that no longer fails is an error too.
LIMITS: dict[tuple[str, str], str] = {}
