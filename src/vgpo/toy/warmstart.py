"""Train the toy weights: see, then read complete images in chains, then pick up a bad habit.

1. *See*: the vision tower alone learns to name the digit in each cell, through a linear head that is then
   thrown away. Without this stage the model never learns to see.
2. *Read*: the complete model learns the chains of thought, and stops early, while its reading is still faulty.
3. *Forget*: a share ``forget`` of the chains has the bad habit of its setting, by default it looks at the first row of
   the image only and answers from it.
   The learning rate falls to zero, reading becomes steady, and greedy answers take up the bad habit that
   reinforcement learning is there to break.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich import get_console
from rich.progress import Progress
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from vgpo.terminal import draws_bars
from vgpo.toy.model import build_model, build_processor
from vgpo.toy.scans import Scans, load_scans
from vgpo.toy.task import Question, TaskSettings, draw_question

MAX_NEW_TOKENS = 64  # the longest chain of a 4 x 4 grid is 45 tokens


LOG = "warmstart.json"


@dataclass(frozen=True, kw_only=True)
class WarmstartSettings:
    """How the toy weights are made.

    Attributes:
        task: the difficulty dial of the questions.
        seed: draws weights, images and questions; same seed and number of threads, same weights.
        see_steps: optimizer steps of the first stage, of 32 images each.
        read_steps: most optimizer steps of the second stage, of 64 questions each.
        read_accuracy: the second stage ends at the first measurement of at least this greedy accuracy, 0 to 1.
        forget_steps: optimizer steps of the third stage, of 64 questions each.
        forget: share of the third stage's chains, 0 to 1, that have the bad habit of their setting.
        naming: weight of a second loss, at least 0: at each visual position of the image the head must name the digit
            that is there. Without it the states of visual tokens are not like those of the text that names them.
        evaluate_every: steps of the second stage between two measurements of accuracy.
        num_questions: test questions of each measurement.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    task: TaskSettings = field(default_factory=TaskSettings)
    seed: int = 0
    see_steps: int = 100
    read_steps: int = 1000
    read_accuracy: float = 0.65
    forget_steps: int = 120
    forget: float = 0.75
    naming: float = 0.0
    evaluate_every: int = 50
    num_questions: int = 400

    def __post_init__(self) -> None:
        for name in ("see_steps", "read_steps", "forget_steps", "evaluate_every", "num_questions"):
            if (value := vars(self)[name]) < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        for name in ("read_accuracy", "forget"):
            if not 0 <= (value := vars(self)[name]) <= 1:
                raise ValueError(f"{name} is {value}; expected 0 to 1")
        if not self.naming >= 0:
            raise ValueError(f"naming is {self.naming}; expected at least 0")


@dataclass(frozen=True, kw_only=True)
class WarmstartLog:
    """Measurements during the warm start: one record each, with stage, step, loss, seconds, accuracies."""

    settings: WarmstartSettings
    records: list[dict[str, Any]]

    def to_json(self) -> str:
        """The settings and the records as JSON text."""
        return json.dumps({"settings": asdict(self.settings), "records": self.records}, indent=1) + "\n"


def warmstart(out: Path, settings: WarmstartSettings | None = None) -> WarmstartLog:
    """Make a checkpoint of the toy model in ``out``, in the hub's on-disk format, with its log.

    ``out`` is replaced only when everything has been written, and only if it holds such a log. The log is
    ``out/warmstart.json``.

    Raises:
        FileExistsError: ``out`` exists and holds no log of a warm start: another program, or a run, wrote it.
    """
    if out.exists() and not (out / LOG).exists():
        raise FileExistsError(f"{out} exists and is not a checkpoint of a warm start; name another folder or move it")
    settings = settings or WarmstartSettings()
    processor = build_processor(more_words=settings.task.setting != "image")
    model = build_model(processor.tokenizer, settings.seed)
    trainer = _Warmstart(model, processor, settings)
    with _replacing(out) as fresh:
        with Progress(disable=not draws_bars(get_console())) as progress:
            trainer.see(progress)
            trainer.read(progress)
            trainer.forget(progress)
        log = WarmstartLog(settings=settings, records=trainer.records)
        model.save_pretrained(fresh)
        processor.save_pretrained(fresh)
        (fresh / LOG).write_text(log.to_json(), encoding="utf-8")
    return log


class _Warmstart:
    """The three stages over one model; fills ``records``."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        processor: Qwen2_5_VLProcessor,
        settings: WarmstartSettings,
    ) -> None:
        self.model, self.settings = model, settings
        self.rng = np.random.default_rng([settings.seed, 2])  # the datasets draw from streams 0 and 1
        self.train_scans, test_scans = load_scans("train"), load_scans("test")
        self.encoder = Encoder(processor, self.train_scans)
        self.test_encoder = Encoder(processor, test_scans)
        test_rng = np.random.default_rng([settings.seed, 3])
        self.test_questions = [
            draw_question(test_rng, test_scans, settings.task) for _ in range(settings.num_questions)
        ]
        self.records: list[dict[str, Any]] = []
        self.start = time.monotonic()

    def see(self, progress: Progress) -> None:
        """Train the vision tower to name the digit of every cell."""
        task, steps = self.settings.task, self.settings.see_steps
        head = _linear(self.model.config.vision_config.out_hidden_size, 10, self.settings.seed)
        tower = self.model.model.visual
        optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=2e-3, weight_decay=0.01)
        for step in progress.track(range(1, steps + 1), description="Learning to see"):
            scans = self.rng.integers(len(self.train_scans.labels), size=(32, task.rows, task.columns))
            labels = torch.as_tensor(self.train_scans.labels[scans]).flatten()
            pixels, grid = self.encoder.pixels(scans)
            logits = head(tower(pixels, grid_thw=grid).pooler_output)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 25 == 0 or step == steps:
                accuracy = (logits.argmax(-1) == labels).double().mean().item()
                self._record("see", step, loss.item(), digits=accuracy)

    def read(self, progress: Progress) -> None:
        """Train the complete model on full chains until greedy accuracy reaches the stop."""
        settings = self.settings
        optimizer = self._optimizer(1e-3)
        for step in progress.track(range(1, settings.read_steps + 1), description="Learning to read"):
            loss = self._chain_step(optimizer, 1e-3 * min(1, step / 50), forget=0)
            if step % settings.evaluate_every and step != settings.read_steps:
                continue
            accuracy = self._measure("read", step, loss)
            if accuracy >= settings.read_accuracy:
                progress.console.print(f"Greedy accuracy {accuracy:.3f} after {step} steps: reading well enough")
                return

    def forget(self, progress: Progress) -> None:
        """Train the complete model on chains of which a share looks at the first row only."""
        steps = self.settings.forget_steps
        optimizer = self._optimizer(8e-4)
        for step in progress.track(range(1, steps + 1), description="Picking up a bad habit"):
            rate = 8e-4 * min(1, step / 10) * (1 - (step - 1) / steps)
            loss = self._chain_step(optimizer, rate, forget=self.settings.forget)
        accuracy = self._measure("forget", steps, loss)
        progress.console.print(f"Greedy accuracy of the finished weights: {accuracy:.3f}")

    def _optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.95))

    def _chain_step(self, optimizer: torch.optim.Optimizer, rate: float, forget: float) -> float:
        """One optimizer step on 64 fresh questions; returns the loss, nats per token."""
        questions = [draw_question(self.rng, self.train_scans, self.settings.task) for _ in range(64)]
        forgets = self.rng.random(len(questions)) < forget
        chains = [q.forgetful if skip else q.chain for q, skip in zip(questions, forgets, strict=True)]
        inputs, labels = self.encoder.encode(questions, chains)
        logits = self.model(**inputs).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        if self.settings.naming:
            named = logits[inputs["mm_token_type_ids"].bool()]
            loss = loss + self.settings.naming * F.cross_entropy(named, self.encoder.digit_ids(questions))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    def _measure(self, stage: str, step: int, loss: float) -> float:
        accuracy = greedy_accuracy(self.model, self.test_encoder, self.test_questions)
        self._record(stage, step, loss, **accuracy)
        return accuracy["all"]

    def _record(self, stage: str, step: int, loss: float, **accuracies: float) -> None:
        rounded = {name: round(value, 4) for name, value in accuracies.items()}
        seconds = round(time.monotonic() - self.start)
        self.records.append(
            {"stage": stage, "step": step, "loss": round(loss, 4), "accuracy": rounded, "seconds": seconds}
        )


class Encoder:
    """Questions over one side of the split as model inputs, without drawing and cutting up images each time.

    A cell is 28 x 28 pixels, one merged block of patches, so the processor's output for an image is that of
    its cells one after another: it is run once on each scan.
    """

    def __init__(self, processor: Qwen2_5_VLProcessor, scans: Scans) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        cells = [torch.from_numpy(scan).expand(3, -1, -1) for scan in scans.pixels]
        patches = processor.image_processor(cells, return_tensors="pt")["pixel_values"]
        self.labels = scans.labels
        self.blocks = patches.view(len(cells), -1, patches.shape[-1])  # (N, 4 patches, 1176)

    def pixels(self, scans: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, rows, columns) indices of scans -> ``pixel_values`` and ``image_grid_thw``."""
        B, rows, columns = scans.shape
        grid = torch.tensor([[1, 2 * rows, 2 * columns]]).expand(B, -1)
        return self.blocks[torch.as_tensor(scans).flatten()].flatten(0, 1), grid

    def encode(
        self, questions: list[Question], chains: list[str] | None = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Left-padded model inputs and labels (B, L), -100 outside the chains; prompts alone without chains."""
        prompts = self.tokenizer([self._prompt(question) for question in questions])["input_ids"]
        if chains is None:
            answers: list[list[int]] = [[] for _ in prompts]
        else:
            eos = self.tokenizer.eos_token
            answers = self.tokenizer([chain + eos for chain in chains])["input_ids"]
        lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
        ids = torch.full((len(prompts), max(lengths)), self.tokenizer.pad_token_id)
        labels = torch.full_like(ids, -100)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, ids.shape[1] - lengths[row] :] = torch.tensor(prompt + answer)
            labels[row, ids.shape[1] - len(answer) :] = torch.tensor(answer, dtype=labels.dtype)
        pixel_values, grid = self.pixels(np.stack([question.scans for question in questions]))
        inputs = {
            "input_ids": ids,
            "attention_mask": (ids != self.tokenizer.pad_token_id).long(),
            "mm_token_type_ids": (ids == self.processor.image_token_id).int(),
            "pixel_values": pixel_values,
            "image_grid_thw": grid,
        }
        return inputs, labels

    def digit_ids(self, questions: list[Question]) -> torch.Tensor:
        """The token that names the digit at each visual position of the images, one image after another."""
        names = self.tokenizer.convert_tokens_to_ids([f"Ġ{digit}" for digit in range(10)])
        labels = np.concatenate([self.labels[question.scans].flatten() for question in questions])
        return torch.tensor(names)[torch.as_tensor(labels)]

    def _prompt(self, question: Question) -> str:
        content = [
            {"type": "image"},
            {"type": "text", "text": question.problem.removeprefix("<image>")},
        ]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        image_token = self.processor.image_token
        return text.replace(image_token, image_token * question.scans.size)


@torch.no_grad()
def greedy_accuracy(
    model: Qwen2_5_VLForConditionalGeneration, encoder: Encoder, questions: list[Question]
) -> dict[str, float]:
    """Share of greedy answers that are right, in [0, 1]: ``all``, and each question kind by name."""
    right = defaultdict(list)
    for start in range(0, len(questions), 100):
        batch = questions[start : start + 100]
        inputs, _ = encoder.encode(batch)
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = encoder.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for question, text in zip(batch, texts, strict=True):
            is_right = text.endswith(f"\\boxed{{{question.answer}}}")
            right[question.kind].append(is_right)
            if question.setting != question.kind and question.setting != "image":
                right[question.setting].append(is_right)
            right["all"].append(is_right)
    return {kind: sum(values) / len(values) for kind, values in sorted(right.items())}


def _linear(num_in: int, num_out: int, seed: int) -> torch.nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Linear(num_in, num_out)


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder to write into, which replaces `out` at the end; write errors are found at the start."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        fresh, old = Path(temporary) / "new", Path(temporary) / "old"
        yield fresh
        if out.exists():
            out.rename(old)
        fresh.rename(out)
