"""Sample groups of responses with their focus, and answers to the same questions without the images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from vgpo.data.schema import ANSWER, IMAGES, PROBLEM
from vgpo.evaluation.accuracy import progress_bar
from vgpo.evaluation.completions import context_length_of, fits
from vgpo.focus import banned_token_ids, visual_token_ids
from vgpo.focus_check.records import PREDICTING, READING, FocusCheckError
from vgpo.policy.ablation import TextOnly
from vgpo.policy.generation import Responses, evaluation_mode, respond, sampled_decoding
from vgpo.policy.head import scoring_head
from vgpo.policy.prompts import EncodedPrompt, encode
from vgpo.policy.scoring import Rows, score_rows
from vgpo.references import num_options
from vgpo.rewards import grade
from vgpo.training.strata import find_strata

SCORED_AT_ONCE = 8  # responses whose logits are in memory at once
MIN_SAMPLES = 2

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Responses to Q questions, B in total; those of one question are adjacent."""

    rows: tuple[int, ...]
    """Number of each question in the dataset, (Q,)."""
    question: Tensor
    """Question index of each response, from 0; int64 (B,)."""
    mask: Tensor
    """True at the tokens of a response, including the end token; bool (B, T)."""
    similarity: Mapping[str, Tensor]
    """Cosine with the visual prototype by state, `reading` and `predicting`; float32 (B, T)."""
    correct: Tensor
    """bool (B,)"""
    truncated: Tensor
    """bool (B,)"""
    blind_correct: Tensor
    """Answers without the image, bool (Q, K)."""
    chance: Tensor
    """Probability of guessing, 1 / options in multiple choice, else 0; (Q,)."""
    strata: tuple[str, ...] | None = None
    """The stratum of each question, (Q,)."""
    without_image: int = 0
    """Rows that were skipped because they have no image."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings.

    Args:
        samples: G >= 2, responses per question.
        blind_samples: K >= 1, responses per question without its image.
        temperature: > 0; top-p and top-k are off.
        max_new_tokens: longest response, in tokens.
        batch_size: responses per batch.
        seed: sampling seed.
        chat_template_kwargs: as in training.

    Raises:
        FocusCheckError: a value is out of its range.
    """

    samples: int = 8
    blind_samples: int = 2
    temperature: float = 1.0
    max_new_tokens: int
    batch_size: int = 64
    seed: int = 0
    chat_template_kwargs: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.samples < MIN_SAMPLES:
            raise FocusCheckError(
                f"--samples {self.samples}: a group of fewer than {MIN_SAMPLES} responses has no correct and wrong "
                "ones to compare; expected 2 or more, 8 is usual"
            )
        if self.blind_samples < 1:
            raise FocusCheckError(f"--blind-samples {self.blind_samples}: expected 1 or more, 2 is usual")
        if not 0 < self.temperature < float("inf"):
            raise FocusCheckError(f"--temperature {self.temperature}: expected a number above 0, 1 is usual")


@dataclass(frozen=True)
class Drawn:
    """Responses of one batch on the CPU; fields as in `Samples`, before concatenation."""

    mask: Tensor
    reading: Tensor
    predicting: Tensor
    correct: list[bool]
    truncated: list[bool]


def sample_groups(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompts: Dataset,
    sampling: Sampling,
    *,
    stratum_column: str | None = None,
    progress: bool = True,
) -> Samples:
    """Sample and score the responses of a check.

    Args:
        model: a vision-language model on its device.
        processor: its processor.
        prompts: rows from `vgpo.data.to_prompts`; those without an image are skipped.
        sampling: the sampling settings.
        stratum_column: column of the dataset, or field of its column `meta`, whose values are the strata.
        progress: show a progress bar.

    Raises:
        FocusCheckError: no row has an image, a prompt fills the model's context, or there is no such column.
    """
    strata = None if stratum_column is None else strata_of(prompts, stratum_column)
    rows = [number for number, row in enumerate(prompts) if row[IMAGES]]
    if not rows:
        raise FocusCheckError(
            f"none of the {len(prompts)} rows has an image, so there is no visual focus to measure; name a dataset "
            "with images, or raise --limit"
        )
    sampler = Sampler(model, processor, prompts, sampling)
    asked = [row for row in rows for _ in range(sampling.samples)]
    asked_blind = [row for row in rows for _ in range(sampling.blind_samples)]
    drawn: list[Drawn] = []
    blind: list[bool] = []
    with progress_bar(disable=not progress) as bar, scoring_head(model, sampling.temperature):
        task = bar.add_task("sampling", total=len(asked) + len(asked_blind))
        for start, batch in numbered_batches(asked, sampling.batch_size):
            drawn.append(sampler.draw(batch, start))
            bar.advance(task, len(batch))
        for start, batch in numbered_batches(asked_blind, sampling.batch_size):
            blind += sampler.draw_blind(batch, len(asked) + start)
            bar.advance(task, len(batch))
    return Samples(
        rows=tuple(rows),
        question=torch.arange(len(rows)).repeat_interleave(sampling.samples),
        mask=padded([one.mask for one in drawn]),
        similarity={
            READING: padded([one.reading for one in drawn]),
            PREDICTING: padded([one.predicting for one in drawn]),
        },
        correct=torch.tensor([right for one in drawn for right in one.correct]),
        truncated=torch.tensor([cut for one in drawn for cut in one.truncated]),
        blind_correct=torch.tensor(blind).view(len(rows), sampling.blind_samples),
        chance=torch.tensor([chance_of(prompts[row]) for row in rows]),
        strata=None if strata is None else tuple(strata[row] for row in rows),
        without_image=len(prompts) - len(rows),
    )


@dataclass(frozen=True)
class Sampler:
    """Samples batches of responses to rows by number; the `offset` of a batch is added to the seed."""

    model: PreTrainedModel
    processor: ProcessorMixin
    prompts: Dataset
    sampling: Sampling

    @property
    def decoding(self) -> GenerationConfig:
        sampling = self.sampling
        return sampled_decoding(self.model, self.processor, sampling.max_new_tokens, sampling.temperature)

    def draw(self, numbers: Sequence[int], offset: int) -> Drawn:
        """A response to each row, with its focus."""
        prompts, answers = self._encode(numbers)
        responses = self._respond(prompts, offset)
        reading, predicting = similarities(self.model, responses.rows)
        ends = torch.tensor(self.decoding.eos_token_id, device=responses.ids.device)
        return Drawn(
            mask=responses.mask.cpu(),
            reading=reading.masked_fill(~responses.mask, 0).float().cpu(),
            predicting=predicting.masked_fill(~responses.mask, 0).float().cpu(),
            correct=self._grade(responses, answers),
            truncated=(~torch.isin(responses.ids, ends).any(1)).tolist(),
        )

    def draw_blind(self, numbers: Sequence[int], offset: int) -> list[bool]:
        """Whether a sampled answer to each row without its images is correct."""
        blinded = TextOnly(banned_token_ids(self.model.config))
        prompts, answers = self._encode(numbers)
        return self._grade(self._respond([blinded(prompt, 0) for prompt in prompts], offset), answers)

    def _encode(self, numbers: Sequence[int]) -> tuple[list[EncodedPrompt], list[str]]:
        """Prompts and reference answers; each question is encoded once."""
        rows = {number: self.prompts[number] for number in dict.fromkeys(numbers)}
        limit = context_length_of(self.model.config)
        prompts: dict[int, EncodedPrompt] = {}
        for number, row in rows.items():
            prompt = encode(self.processor, row, self.sampling.chat_template_kwargs, self.model.device)
            if not fits(len(prompt.token_ids), limit):
                raise FocusCheckError(
                    f"row {number} has a prompt of {len(prompt.token_ids)} tokens, expected fewer than the {limit} "
                    "that the model reads; lower --max-pixels, or remove the row"
                )
            prompts[number] = prompt
        return [prompts[number] for number in numbers], [rows[number][ANSWER] for number in numbers]

    def _respond(self, prompts: Sequence[EncodedPrompt], offset: int) -> Responses:
        return respond(self.model, prompts, self.decoding, seed=self.sampling.seed + offset)

    def _grade(self, responses: Responses, answers: Sequence[str]) -> list[bool]:
        completions = self.processor.batch_decode(responses.ids, skip_special_tokens=True)
        return [bool(right) for right in grade(completions, answers)]


def similarities(model: PreTrainedModel, rows: Rows) -> tuple[Tensor, Tensor]:
    """Cosine with the visual prototype (Eq. 3) of the state after reading each token, and of the one that predicts it.

    Must be called inside `scoring_head`.

    Returns:
        (B, T) each.
    """
    with evaluation_mode(model):
        scores = score_rows(
            model, rows, visual_token_ids(model.config), share=False, similarity=True, batch_size=SCORED_AT_ONCE
        )
    assert scores.similarity is not None
    assert scores.predicting_similarity is not None
    return scores.similarity, scores.predicting_similarity


def strata_of(prompts: Dataset, column: str) -> list[str]:
    """The value of each row in a column of the dataset, or in a field of its column `meta`, as text.

    Raises:
        FocusCheckError: there is no such column, or a row has no value in it.
    """
    try:
        strata = find_strata(prompts, column)
    except ValueError as error:
        raise FocusCheckError(str(error)) from error
    return [strata.names[number] for number in strata.numbers.tolist()]


def chance_of(row: Row) -> float:
    """Probability of guessing the answer: 1 / options in multiple choice, else 0."""
    options = num_options(row[PROBLEM], row[ANSWER])
    return 1 / options if options else 0.0


def numbered_batches(numbers: Sequence[int], size: int) -> Iterator[tuple[int, Sequence[int]]]:
    """Batches, each with the index of its first element."""
    return ((start, numbers[start : start + size]) for start in range(0, len(numbers), size))


def padded(parts: Sequence[Tensor]) -> Tensor:
    """Batches (b, t) of different widths as one (B, T), padded with zeros on the right."""
    return pad_sequence([row for part in parts for row in part], batch_first=True)
