"""Whether a start of the toy model forgets its image: the conditions that the study asks of `forgetting`.

`python studies/entry.py CHECKPOINT` samples eight responses to each of 200 held-out questions and prints

1. greedy accuracy, between 30 and 60 %;
2. the late/early ratio of visual focus by the paper's definition, below 0.9;
3. the same on wrong answers less that on right answers to the same question, below 0;
4. looks by their place in the chain: how often a row is looked at, and how often the digit that is said of it is
   right, less often at later places, although each row asked for alone is read right;
5. the correlation of a response's mean focus, and of its number of late looks, with its being right, among responses
   to the same question, above 0.2.

What is built in: the start was taught to pass over later rows, and at each visual position to name the digit there.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.utils import add_fused_lm_head

from vgpo.equations import focus_score, group_index
from vgpo.focus import visual_token_ids
from vgpo.policy.generation import evaluation_mode, greedy_decoding, respond, sampled_decoding
from vgpo.policy.prompts import encode
from vgpo.policy.scoring import score_rows
from vgpo.shaping.adaptive import group_correlation
from vgpo.toy import TaskSettings, draw_question, load_scans, parse_task, render
from vgpo.toy.task import Question

SAMPLES = 8
MAX_NEW_TOKENS = 56
ROW = re.compile(r"row (\d): ([^.]*)\.")
ANSWER = re.compile(r"\\boxed\{([\d ]+)\}")
MAX_RATIO, MIN_CORRELATION, GREEDY = 0.9, 0.2, (0.3, 0.6)


@dataclass(frozen=True)
class Response:
    """A response to a question about a span of rows.

    Attributes:
        question: number of the question.
        correct: whether the answer is right.
        focus: mean visual focus of its tokens.
        ratio: mean focus of its last half over that of its first.
        looked: of each row that it goes through, whether its digits are read.
        read: whether the digit that it says of the row is the right one.
    """

    question: int
    correct: bool
    focus: float
    ratio: float
    looked: list[bool]
    read: list[bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a start")
    parser.add_argument("--task", default="setting=forgetting,rows=4", help="its task")
    parser.add_argument("--limit", type=int, default=200, help="questions")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    questions = held_out(parse_task(arguments.task), arguments.limit, arguments.seed)
    model = AutoModelForImageTextToText.from_pretrained(arguments.checkpoint, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(arguments.checkpoint)
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    greedy = np.mean([one.correct for one in answers(model, processor, questions, 1, arguments.seed)])
    sampled = answers(model, processor, questions, SAMPLES, arguments.seed)
    print(f"{arguments.checkpoint}: {len(questions)} questions, {len(sampled)} samples, seed {arguments.seed}\n")
    print(places(sampled), conditions(float(greedy), sampled), sep="\n\n")


def held_out(task: TaskSettings, number: int, seed: int) -> list[Question]:
    rng, scans = np.random.default_rng([seed, 5]), load_scans("test")
    return [draw_question(rng, scans, task) for _ in range(number)]


def answers(model, processor, questions: Sequence[Question], samples: int, seed: int) -> list[Response]:  # type: ignore[no-untyped-def]
    """Responses to each question: one greedy one, or several samples."""
    scans, found = load_scans("test"), []
    decoding = (
        greedy_decoding(model, processor, MAX_NEW_TOKENS)
        if samples == 1
        else sampled_decoding(model, processor, MAX_NEW_TOKENS, 1.0)
    )
    for start in range(0, len(questions), 40):
        part = questions[start : start + 40]
        rows = [
            {"prompt": chat(question), "images": [render(question, scans)]}
            for question in part
            for _ in range(samples)
        ]
        prompts = [encode(processor, row, {}, model.device) for row in rows]
        responses = respond(model, prompts, decoding, seed=seed + start)
        with evaluation_mode(model):
            scores = score_rows(model, responses.rows, visual_token_ids(model.config), share=False, similarity=True)
        focus = focus_score(scores.similarity, responses.mask, "paper")
        texts = processor.batch_decode(responses.ids, skip_special_tokens=True)
        for i, text in enumerate(texts):
            number = start + i // samples
            found.append(response_of(number, questions[number], text, focus[i][responses.mask[i]]))
    return found


def chat(question: Question) -> list[dict[str, object]]:
    text = question.problem.removeprefix("<image>")
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def response_of(number: int, question: Question, text: str, focus: torch.Tensor) -> Response:
    labels = load_scans("test").labels[question.scans]
    rows = [(int(row) - 1, seen) for row, seen in ROW.findall(text)]
    digits = [int(digit) for digit in (ANSWER.findall(text) or [""])[0].split()]
    said = [*digits, *[-1] * len(rows)]
    late = np.arange(1, len(focus) + 1) * 2 > len(focus)
    values = focus.numpy()
    return Response(
        number,
        text.endswith(f"\\boxed{{{question.answer}}}"),
        float(values.mean()),
        float(values[late].mean() / values[~late].mean()) if len(values) > 1 else 1.0,
        [bool(re.search(r"\d", seen)) for _, seen in rows],
        [0 <= row < len(labels) and labels[row].max() == digit for (row, _), digit in zip(rows, said, strict=False)],
    )


def places(sampled: Sequence[Response]) -> str:
    """How often rows are looked at, and said right, by their place in the chain; rows asked for alone apart."""
    looked, read, read_if_looked = defaultdict(list), defaultdict(list), defaultdict(list)
    for one in sampled:
        for place, (look, right) in enumerate(zip(one.looked, one.read, strict=True), start=1):
            key = "alone" if len(one.looked) == 1 else str(place)
            looked[key].append(look)
            read[key].append(right)
            read_if_looked[key] += [right] if look else []
    lines = [
        "| place in the chain | rows | looked at | digit right | of those looked at |",
        "|---|---:|---:|---:|---:|",
    ]
    for key in sorted(looked):
        numbers = f"{np.mean(looked[key]):.2f} | {np.mean(read[key]):.2f} | {np.mean(read_if_looked[key]):.2f}"
        lines.append(f"| {key} | {len(looked[key])} | {numbers} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Condition:
    """What was found, and what was asked for, if anything."""

    name: str
    found: str
    asked: str = ""
    is_met: bool = True

    @property
    def line(self) -> str:
        return (
            f"| {self.name} | {self.found} | {self.asked} | {('yes' if self.is_met else 'no') if self.asked else ''} |"
        )


def conditions(greedy: float, sampled: Sequence[Response]) -> str:
    groups = defaultdict(list)
    for one in sampled:
        groups[one.question].append(one)
    mixed = [group for group in groups.values() if 0 < sum(one.correct for one in group) < len(group)]
    ratio = float(np.mean([one.ratio for one in sampled]))
    difference = float(
        np.mean([mean_ratio(group, correct=False) - mean_ratio(group, correct=True) for group in mixed])
    )
    first, later = rate(sampled, 0), rate(sampled, 1)
    found = [
        Condition("greedy accuracy", f"{greedy:.3f}", f"{GREEDY[0]} to {GREEDY[1]}", GREEDY[0] <= greedy <= GREEDY[1]),
        Condition("late/early focus", f"{ratio:.3f}", f"< {MAX_RATIO}", ratio < MAX_RATIO),
        Condition("wrong less right, same question", f"{difference:+.3f}", "< 0", difference < 0),
        Condition("digit right, first place; later", f"{first:.2f}; {later:.2f}", "falls", later < first - 0.1),
        *correlations(sampled),
    ]
    head = f"| condition ({len(mixed)} of {len(groups)} groups are mixed) | found | asked for | met |"
    return "\n".join([head, "|---|---:|---:|---|", *(one.line for one in found)])


def mean_ratio(group: Sequence[Response], *, correct: bool) -> float:
    return float(np.mean([one.ratio for one in group if one.correct == correct]))


def correlations(sampled: Sequence[Response]) -> list[Condition]:
    """Of measures of a response with its being right, among the responses to a question."""
    values = {
        "mean focus": [one.focus for one in sampled],
        "late looks": [float(sum(one.looked[1:])) for one in sampled],
        "late/early focus": [one.ratio for one in sampled],
        "rows": [float(len(one.looked)) for one in sampled],
    }
    found = []
    for name, numbers in values.items():
        value = correlation(sampled, numbers)
        asked = f"> {MIN_CORRELATION}" if name in ("mean focus", "late looks") else ""
        found.append(Condition(f"correlation with right, {name}", f"{value:.3f}", asked, value > MIN_CORRELATION))
    return found


def rate(sampled: Sequence[Response], start: int) -> float:
    """Share of right digits at the first place of longer chains, or at all later ones."""
    rows = [one.read[1:] if start else one.read[:1] for one in sampled if len(one.read) > 1]
    return float(np.mean([right for part in rows for right in part]))


def correlation(sampled: Sequence[Response], values: Sequence[float]) -> float:
    """Mean over mixed groups of the correlation of a value with being right."""
    group = group_index(torch.tensor([one.question for one in sampled]))
    right = torch.tensor([float(one.correct) for one in sampled])
    takes_part = torch.ones(len(sampled), dtype=torch.bool)
    found, varies = group_correlation(torch.tensor(values), right, takes_part, group)
    return float(found[varies].mean())


if __name__ == "__main__":
    main()
