"""Run a model on questions: its responses, and where each of their tokens looks.

Questions are processed in batches and yielded one by one; nothing of a batch is kept after it.
"""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from itertools import accumulate, pairwise
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from vgpo.data.schema import META
from vgpo.equations import VGPOSettings
from vgpo.evaluation.accuracy import progress_bar
from vgpo.inspection.attention import attention_shares
from vgpo.inspection.cells import cell_values, grid_entries, packed
from vgpo.inspection.inspection import Inspection
from vgpo.inspection.patches import LAYOUTS, Grid, Prompt, UnknownLayoutError, grids_of, image_sizes, layout_of
from vgpo.inspection.questions import Question, Row, questions_of
from vgpo.inspection.reading import ForwardStates
from vgpo.inspection.schema import ABLATIONS, RESAMPLED, VERSION, AnswerRecord
from vgpo.inspection.weights import NOTHING, group_advantages, json_values, weigh
from vgpo.pages.images import image_entry
from vgpo.policy.generation import Responses, as_responses, greedy_decoding, respond, sampled_decoding
from vgpo.policy.prompts import EncodedPrompt, encode
from vgpo.rewards import extract_boxed, grade
from vgpo.settings_checks import check_number

logger = logging.getLogger(__name__)

# Columns that name the kind of a problem; the first existing one is used.
KIND_COLUMNS = ("kind", "category", "question_type", "subject", "type", "source")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is sampled and measured.

    Raises:
        ValueError: A number out of its range.
    """

    samples: int = 1
    """Responses per question: one is greedy, several are sampled."""
    temperature: float = 1.0
    """Sampling temperature, > 0; top-p and top-k are off."""
    max_new_tokens: int = 2048
    """Longest response, in tokens."""
    batch_size: int = 64
    """Responses per batch: affects speed, memory and the sampled responses."""
    seed: int = 0
    """Sampling seed."""
    attention: bool = False
    """Measure attention shares of the last layer; adds a slow pass per response."""
    without: bool = False
    """Repeat each question with a blank image and with another question's; for sampled responses also with its own
    image, sampled again."""
    settings: VGPOSettings = field(default_factory=VGPOSettings)
    """Settings for gate, weight and factors."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """As in training."""

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "batch_size"):
            check_number(name, vars(self)[name], low=1, low_included=True)
        check_number("temperature", self.temperature, low=0)

    @property
    def ablations(self) -> tuple[str, ...]:
        """The ablations to measure."""
        if not self.without:
            return ()
        return ABLATIONS if self.samples > 1 else tuple(name for name in ABLATIONS if name != RESAMPLED)

    @property
    def responses(self) -> dict[str, Any]:
        """The file's record of responses generated with these options."""
        return {
            "from": "answers",
            "temperature": self.temperature if self.samples > 1 else 0.0,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
        }


def inspect(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Dataset | Sequence[Row],
    *,
    numbers: Sequence[int] | None = None,
    name: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Inspection:
    """Answer questions, and measure where each token of the answers looks.

    The result is kept in memory; `vgpo inspect` streams it to a file. Compare two models with `inspect(first,
    ...).compared_with(inspect(second, ...))`.

    Args:
        model: A vision-language model on its device; its train/eval mode is restored.
        processor: Its processor, with the pixel limits of training.
        rows: From `vgpo.data.to_prompts`.
        numbers: Row numbers; 0, 1, 2 and so on by default.
        name: Name of the model; by default, where it was loaded from.
        progress: Show a progress bar.
        options: Fields of `vgpo.inspection.compute.Options`.

    Raises:
        ValueError: No row, or an option out of its range.
    """
    inspector = Inspector(model, processor, Options(**options))
    numbers = range(len(rows)) if numbers is None else numbers
    if len(numbers) == 0 or len(numbers) != len(rows):
        raise ValueError(f"found {len(rows)} rows and {len(numbers)} numbers, expected equally many, at least one")
    questions = questions_of(rows, numbers, ablations=inspector.options.ablations)
    found = list(inspector.inspect(questions, len(rows), progress=progress))
    path = model.name_or_path
    return Inspection({**inspector.head(name or path, path), "questions": found})


@dataclass(frozen=True)
class Batch:
    """Questions processed together; the responses to each are adjacent.

    Attributes:
        questions: The questions of the batch.
        counts: Number of responses to each.
    """

    questions: list[Question]
    counts: list[int]

    @property
    def owners(self) -> list[int]:
        """The question index of each response."""
        return [place for place, count in enumerate(self.counts) for _ in range(count)]

    @property
    def slices(self) -> list[slice]:
        """The slice of each question's responses."""
        return [slice(*ends) for ends in pairwise(accumulate(self.counts, initial=0))]


@dataclass(frozen=True)
class Inspector:
    """A model on its device, its processor, and the options."""

    model: PreTrainedModel
    processor: ProcessorMixin
    options: Options

    def head(self, name: str, path: str, responses: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The head of an inspection's file, before its questions.

        Args:
            name: Name of the model.
            path: Where it was loaded from.
            responses: Record of existing responses, if none are generated.
        """
        return {
            "version": VERSION,
            "vgpo": version("vgpo"),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": asdict(self.options.settings),
            "responses": responses or self.options.responses,
            "models": [{"name": name, "path": path, "family": self.model.config.model_type}],
        }

    def inspect(self, questions: Iterator[Question], total: int, *, progress: bool) -> Iterator[dict[str, Any]]:
        """Yields the questions as stored in an inspection's file; `total` is their number."""
        try:
            layout_of(self.model.config)
        except UnknownLayoutError as error:
            logger.warning("%s", error)
        num_rollouts = num_broken = 0
        with progress_bar(disable=not progress) as bar:
            task = bar.add_task("inspecting", total=total)
            for batch in self._batches(questions):
                for entry in self._entries(batch):
                    num_rollouts += len(entry["rollouts"])
                    num_broken += sum(None in (one["similarity"] or ()) for one in entry["rollouts"])
                    yield entry
                bar.advance(task, len(batch.questions))
        if num_broken:
            logger.warning(
                "%d of %d responses have hidden states that are not finite (in %s): they have no map, and no value "
                "at such a token. Load the model in bfloat16 or float32.",
                num_broken, num_rollouts, self.model.dtype,
            )  # fmt: skip

    @cached_property
    def decoding(self) -> GenerationConfig:
        length = self.options.max_new_tokens
        if self.options.samples == 1:
            return greedy_decoding(self.model, self.processor, length)
        return sampled_decoding(self.model, self.processor, length, self.options.temperature)

    def _batches(self, questions: Iterator[Question]) -> Iterator[Batch]:
        """Groups adjacent questions until their responses fill a batch; at least one question each."""
        batch = Batch([], [])
        for question in questions:
            count = len(question.stored) or self.options.samples
            if batch.questions and sum(batch.counts) + count > self.options.batch_size:
                yield batch
                batch = Batch([], [])
            batch.questions.append(question)
            batch.counts.append(count)
        if batch.questions:
            yield batch

    def _entries(self, batch: Batch) -> Iterator[dict[str, Any]]:
        prompts = [self._encode(question.row) for question in batch.questions]
        reading = ForwardStates.of(self.model, self._responses(batch, [prompts[owner] for owner in batch.owners]))
        answers = self._answers(reading.responses, [batch.questions[owner].row["answer"] for owner in batch.owners])
        attention: list[Any] = [None] * len(answers)
        if self.options.attention:
            attention = attention_shares(self.model, reading.responses)
        without = self._ablations(batch)
        for question, prompt, place in zip(batch.questions, prompts, batch.slices, strict=True):
            grids = self._grids(question, prompt)
            measured = self._measured(question, reading, place, answers[place], grids)
            rollouts = [
                {
                    "model": 0,
                    "sample": sample,
                    **answers[i],
                    **measured[sample],
                    "attention": attention[i],
                    **without[i],
                }
                for sample, i in enumerate(range(place.start, place.stop))
            ]
            yield question_entry(question, grids, rollouts)

    def _encode(self, row: Row) -> EncodedPrompt:
        return encode(self.processor, row, self.options.chat_template_kwargs, self.model.device)

    def _responses(self, batch: Batch, prompts: list[EncodedPrompt]) -> Responses:
        """The stored responses of the questions, or new ones."""
        stored = [response.token_ids for question in batch.questions for response in question.stored]
        if stored:
            return as_responses(prompts, stored, self.decoding.pad_token_id, self.model.device)
        return respond(self.model, prompts, self.decoding, seed=self._seed(batch))

    def _seed(self, batch: Batch, ablation: str = "") -> int:
        """Sampling seed of a batch, different for each ablation: otherwise answers would agree because of the seed."""
        return random.Random(f"{self.options.seed} {batch.questions[0].number} {ablation}").getrandbits(63)

    def _answers(self, responses: Responses, references: list[str]) -> list[dict[str, Any]]:
        """Tokens, text and verdict of each response."""
        tokenizer, ends = self.processor.tokenizer, set(self.decoding.eos_token_id)
        token_ids = [ids[mask].tolist() for ids, mask in zip(responses.ids, responses.mask, strict=True)]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in token_ids]
        return [
            {
                "tokens": [tokenizer.decode([token]) for token in ids],
                "text": text,
                "predicted": extract_boxed(text),
                "correct": verdict,
                "truncated": ends.isdisjoint(ids),
            }
            for ids, text, verdict in zip(token_ids, texts, grade(texts, references), strict=True)
        ]

    def _measured(
        self,
        question: Question,
        reading: ForwardStates,
        place: slice,
        answers: Sequence[Mapping[str, Any]],
        grids: Sequence[Grid],
    ) -> list[dict[str, Any]]:
        """The measurements of each response to a question, which are at `place` of the batch."""
        mask, similarity = reading.responses.mask[place], reading.similarity[place]
        if not (reading.visual[place].any() and mask.any()):
            return [{"similarity": None, **NOTHING, "patches": None}] * len(answers)
        advantages = None
        if len(answers) > 1:
            correct = torch.tensor([float(answer["correct"]) for answer in answers], device=mask.device)
            given = [response.advantage for response in question.stored if response.advantage is not None]
            advantages = torch.tensor(given, device=mask.device) if given else group_advantages(correct)
        weighed = reading.similarity_of(self.options.settings.focus_state)[place]
        weights = weigh(similarity, weighed, mask, advantages, self.options.settings)
        columns = [entry["tokens"] for entry in grid_entries(grids)]
        return [
            {
                "similarity": json_values(similarity[i][mask[i]]),
                **weights.entry(i, mask[i]),
                "patches": packed(cell_values(reading.cosines(place.start + i), grids), columns) if grids else None,
            }
            for i in range(len(answers))
        ]

    def _ablations(self, batch: Batch) -> list[dict[str, Any]]:
        """For each response, `without`: the answers to its question with other images, decoded in the same way."""
        ablations = self.options.ablations
        found: list[dict[str, Any]] = [
            {"without": dict.fromkeys(ablations) if ablations and question.row["images"] else None}
            for question in (batch.questions[owner] for owner in batch.owners)
        ]
        for name in ablations:
            rows = [question.others[name] for question in batch.questions]
            prompts = [None if row is None else self._encode(row) for row in rows]
            places = [i for i, owner in enumerate(batch.owners) if prompts[owner] is not None]
            if not places:
                continue
            of_each = [prompt for i in places if (prompt := prompts[batch.owners[i]]) is not None]
            references = [batch.questions[batch.owners[i]].row["answer"] for i in places]
            seed = self._seed(batch, name)
            answers = self._answers(respond(self.model, of_each, self.decoding, seed=seed), references)
            for i, answer in zip(places, answers, strict=True):
                found[i]["without"][name] = {key: answer[key] for key in AnswerRecord.model_fields}
        return found

    def _grids(self, question: Question, prompt: EncodedPrompt) -> list[Grid]:
        """The grids of the visual tokens; empty if the layout is unknown."""
        config, images = self.model.config, question.row["images"]
        if config.model_type not in LAYOUTS:
            return []
        try:
            return grids_of(Prompt(config, self.processor, prompt.token_ids, prompt.media, image_sizes(images)))
        except UnknownLayoutError as error:
            logger.warning("row %d: %s", question.number, error)
            return []


def question_entry(question: Question, grids: Sequence[Grid], rollouts: list[dict[str, Any]]) -> dict[str, Any]:
    """A question as stored in an inspection's file."""
    row = question.row
    return {
        "row": question.number,
        "problem": row["problem"],
        "answer": row["answer"],
        "kind": kind_of(row),
        "images": [
            {"width": image.width, "height": image.height, "data": image_entry(image)["uri"]}
            for image in row["images"]
        ],
        "grids": grid_entries(grids),
        "rollouts": rollouts,
    }


def kind_of(row: Row) -> str | None:
    """The kind of problem, if the dataset names it."""
    meta = row.get(META) or {}
    return next((str(meta[name]) for name in KIND_COLUMNS if meta.get(name)), None)
