"""Visual grounding of a policy on held-out questions: answers without the image, and focus along responses."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from vgpo.data import image_digest
from vgpo.equations import focus_score
from vgpo.evaluation.accuracy import Evaluation, evaluate, evaluation_of
from vgpo.focus import focus_statistics, visual_token_ids, visual_token_mask
from vgpo.focus.statistics import NUM_DECILES, focus_by_decile
from vgpo.metric_names import FOCUS_LATE_EARLY_RATIO, FOCUS_MEAN
from vgpo.policy.generation import evaluation_mode, respond, sampled_decoding
from vgpo.policy.head import scoring_head
from vgpo.policy.prompts import encode
from vgpo.policy.scoring import Rows, score_rows
from vgpo.rewards import grade

Row = dict[str, Any]
COUNTS = ("accuracy", "low", "high", "num_questions", "num_correct", "num_unanswered", "num_truncated")


@dataclass(frozen=True)
class Responses:
    """Statistics of responses to held-out questions, sampled once each, for one outcome or for all.

    Attributes:
        num_responses: Number of responses.
        length: Mean number of tokens, with the end token; None if there is no response.
        entropy: Mean over tokens of the entropy of the policy at the sampling temperature, in nats.
        focus: Mean rho (Eq. 4 of arXiv 2604.09349) over tokens, in [0, 1].
        late_early_ratio: Mean rho of the last half over that of the first, as in `vgpo.focus.focus_statistics`.
        deciles: Mean rho in each tenth of the response, over responses that have a token in it.
    """

    num_responses: int
    length: float | None
    entropy: float | None
    focus: float | None
    late_early_ratio: float | None
    deciles: list[float | None]


@dataclass(frozen=True)
class SwappedImages:
    """Prompts (rows with `images`) with other images; rows are built on access.

    Attributes:
        rows: The prompts.
        order: Numbers of the included rows, in order.
        images_of: Maps a row's number and the row to its new images.
    """

    rows: Dataset
    order: list[int]
    images_of: Callable[[int, Row], list[Image.Image]]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> Row:
        number = self.order[place]
        row = self.rows[number]
        return {**row, "images": self.images_of(number, row)}


def measure_grounding(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompts: Dataset,
    true: Evaluation,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 2048,
    temperature: float = 1.0,
    seed: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure the visual grounding of a policy on held-out questions.

    Args:
        model: A vision-language model on its device.
        processor: Its processor.
        prompts: Rows from `vgpo.data.to_prompts`.
        true: Its greedy evaluation on these prompts.
        batch_size: Questions per batch.
        max_new_tokens: Longest response, in tokens.
        temperature: Of the sampled responses; top-p and top-k are off.
        seed: Sampling seed of the responses.
        chat_template_kwargs: As in training.

    Returns:
        dict, JSON-serialisable: `accuracy` has the counts of a greedy `Evaluation` for `true`, `blank` (black images
        of the same sizes) and `other` (another prompt's images), all over the questions with a swap partner, None if
        there are none; `responses` has `Responses` for `all`, `correct` and `wrong`; `temperature` and `seed` are the
        arguments.
    """
    kwargs = chat_template_kwargs or {}
    answer = partial(
        evaluate, model, processor, batch_size=batch_size, max_new_tokens=max_new_tokens, chat_template_kwargs=kwargs,
        progress=False,
    )  # fmt: skip
    accuracy = ablated_accuracy(prompts, true, answer)
    decoding = sampled_decoding(model, processor, max_new_tokens, temperature)
    sampled: list[dict[str, Any]] = []
    with scoring_head(model, temperature):
        for start in range(0, len(prompts), batch_size):
            rows = [prompts[i] for i in range(start, min(start + batch_size, len(prompts)))]
            sampled += sample_and_score(
                model, processor, rows, decoding, seed=seed + start, chat_template_kwargs=kwargs
            )
    return {"accuracy": accuracy, "responses": by_outcome(sampled), "temperature": temperature, "seed": seed}


def ablated_accuracy(
    prompts: Dataset, true: Evaluation, answer: Callable[[SwappedImages], Evaluation]
) -> dict[str, dict[str, Any] | None]:
    """Counts of greedy answers with the true, a black and another image, for questions with a swap partner."""
    other = with_other_images(prompts)
    if not len(other):
        return dict.fromkeys(("true", "blank", "other"))
    found = {
        "true": evaluation_of([true.answers[number] for number in other.order]),
        "blank": answer(with_blank_images(prompts, other.order)),
        "other": answer(other),
    }
    return {name: {key: vars(scores)[key] for key in COUNTS} for name, scores in found.items()}


def with_blank_images(prompts: Dataset, order: list[int]) -> SwappedImages:
    """Questions with their images replaced by black ones of the same sizes.

    Args:
        prompts: The questions.
        order: Numbers of the included rows.
    """
    return SwappedImages(prompts, order, lambda number, row: [Image.new("RGB", old.size) for old in row["images"]])


def with_other_images(prompts: Dataset) -> SwappedImages:
    """Questions with images, each with the images of the next question that has as many different ones.

    The first question follows the last. A question without a partner is left out.
    """
    images = [tuple(image_digest(image) for image in row["images"]) for row in prompts]
    found = {number: swap_partner(images, number) for number, own in enumerate(images) if own}
    donors = {number: donor for number, donor in found.items() if donor is not None}
    return SwappedImages(prompts, list(donors), lambda number, row: prompts[donors[number]]["images"])


def swap_partner(images: Sequence[tuple[str, ...]], number: int) -> int | None:
    """The next row after `number` with as many, but different, images; the first row follows the last."""
    own = images[number]
    following = [*range(number + 1, len(images)), *range(number)]
    return next((row for row in following if len(images[row]) == len(own) and images[row] != own), None)


def sample_and_score(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: list[Row],
    decoding: GenerationConfig,
    *,
    seed: int,
    chat_template_kwargs: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A sampled response to each question: `correct`, `entropy` (T,), `focus` (T,), and `visual`: whether it has an
    image."""
    prompts = [encode(processor, row, chat_template_kwargs, model.device) for row in rows]
    responses = respond(model, prompts, decoding, seed=seed)
    similarity, entropy = score(model, responses.rows)
    mask = responses.mask
    focus = focus_score(similarity, mask, "paper")
    completions = processor.batch_decode(responses.ids, skip_special_tokens=True)
    verdicts = grade(completions, [row["answer"] for row in rows])
    prompt_ids = responses.rows.input_ids[:, : responses.rows.prompt_width]
    visual = visual_token_mask(prompt_ids, visual_token_ids(model.config)).any(1)
    return [
        {"correct": verdict, "entropy": entropy[i][mask[i]], "focus": focus[i][mask[i]], "visual": bool(visual[i])}
        for i, verdict in enumerate(verdicts)
    ]


def score(model: PreTrainedModel, rows: Rows) -> tuple[Tensor, Tensor]:
    """Cosine with the visual prototype, and entropy, of each response token; (B, T) each."""
    with evaluation_mode(model):
        scores = score_rows(model, rows, visual_token_ids(model.config), share=False, similarity=True)
    assert scores.similarity is not None
    assert scores.entropy is not None
    return scores.similarity, scores.entropy


def by_outcome(sampled: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`Responses` as dicts, for all, correct and wrong responses (dicts from `sample_and_score`)."""
    outcomes = {
        "all": sampled,
        "correct": [part for part in sampled if part["correct"]],
        "wrong": [part for part in sampled if not part["correct"]],
    }
    return {name: asdict(summarize_responses(parts)) for name, parts in outcomes.items()}


def summarize_responses(parts: list[dict[str, Any]]) -> Responses:
    """Means over responses (dicts from `sample_and_score`)."""
    if not parts:
        return Responses(0, None, None, None, None, [None] * NUM_DECILES)
    lengths = torch.tensor([len(part["focus"]) for part in parts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
    focus = torch.zeros(mask.shape).masked_scatter(mask, torch.cat([part["focus"] for part in parts]).float().cpu())
    visual = torch.tensor([part["visual"] for part in parts])
    ratios = {name: number(pair.total, pair.number) for name, pair in focus_statistics(focus, mask, visual).items()}
    tenths = [focus_by_decile(part["focus"].tolist()) for part in parts if part["visual"]]
    return Responses(
        num_responses=len(parts),
        length=float(lengths.float().mean()),
        entropy=float(torch.cat([part["entropy"] for part in parts]).mean()),
        focus=ratios[FOCUS_MEAN],
        late_early_ratio=ratios[FOCUS_LATE_EARLY_RATIO],
        deciles=[mean([value for value in tenth if value is not None]) for tenth in zip(*tenths, strict=True)]
        if tenths
        else [None] * NUM_DECILES,
    )


def number(total: Tensor, count: Tensor) -> float | None:
    return float(total / count) if count else None


def mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
