"""Compare the signals of the methods on the toy task, where the tokens that need the image are known.

`python studies/why.py CHECKPOINT --data SOURCE` samples a response to each held-out question and prints

1. the mean of each signal for each role of a token in a chain of thought;
2. how each method divides the credit of a rollout among these roles: the mean factor of its advantage, 1 for DAPO;
3. how well each signal distinguishes tokens that need the image (digits that are read off it) from those that do not:
   the area under the ROC curve, 0.5 for a coin;
4. how wrong answers come about.

A chain is `<think>row 1: 7 4 3, 1. row 2: ... total 2</think>\\boxed{2}`: after each row it continues with the next,
or stops with the closing word. In the setting `forgetting`, words may replace the digits of a row. The state at a
token's own position, which the focus score takes, is the one that predicts the *next* token. So every signal is
evaluated twice: as the methods use it, at the token, and at the token before.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from trl.trainer.utils import add_fused_lm_head

from vgpo.data import load_dataset, to_prompts
from vgpo.evaluation.grounding import Row
from vgpo.focus import banned_token_ids, visual_token_ids
from vgpo.policy.ablation import ABLATIONS, InputAblation, ablate_prompts
from vgpo.policy.generation import Responses, evaluation_mode, respond, sampled_decoding
from vgpo.policy.prompts import encode, prompt_columns
from vgpo.policy.scoring import Rows, Scores, score_rows
from vgpo.rewards import grade
from vgpo.shaping import Signals, build_shaping
from vgpo.shaping.dependency import token_dependency
from vgpo.toy.scans import CELL

READ, GO_ON, GUESS = "digit read", "go on or stop", "guess in words"
# By name, a shaping and its options.
METHODS: dict[str, tuple[str, dict[str, str]]] = {
    "vgpo": ("vgpo", {}),
    "predicting": ("vgpo", {"focus_state": "predicting"}),
    **{name: (name, {}) for name in ("kl_perception", "pgpo", "pepo", "entropy")},
}
CLOSING = ("total", "largest")
ROW = re.compile(r"row (\d+):((?: \d+)+), ([\d ]+)\.")


@dataclass
class Token:
    """A token of a response: its text and role, what the signals say of it, and its share of the credit by method."""

    text: str
    role: str
    signals: dict[str, float]
    credit: dict[str, float]


@dataclass
class Response:
    """A sampled response to a question about a grid of digits, its tokens, and whether it is right."""

    problem: str
    num_rows: int  # of the grid
    text: str
    tokens: list[Token]
    correct: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint of the toy model")
    parser.add_argument("--data", required=True, type=Path, help="its held-out questions, parquet")
    parser.add_argument("--limit", type=int, default=300, help="questions")
    parser.add_argument("--max_new_tokens", type=int, default=56)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(arguments.checkpoint, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(arguments.checkpoint)
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    questions = load_dataset(str(arguments.data))
    prompts = to_prompts(questions.select(range(min(arguments.limit, len(questions)))))
    responses = []
    for start in range(0, len(prompts), 50):
        rows = [prompts[i] for i in range(start, min(start + 50, len(prompts)))]
        responses += look(model, processor, rows, arguments.max_new_tokens, arguments.seed + start)
    print(f"## {arguments.checkpoint.name}: {len(responses)} responses, seed {arguments.seed}\n")
    tables = role_table(responses, "signals"), role_table(responses, "credit")
    print(*tables, separation_table(responses), outcome_table(responses), sep="\n\n")


def look(
    model: PreTrainedModel, processor: ProcessorMixin, rows: list[Row], max_new_tokens: int, seed: int
) -> list[Response]:
    """Sample a response to each question and ask every signal about each of its tokens."""
    decoding = sampled_decoding(model, processor, max_new_tokens, temperature=1.0)
    prompts = [encode(processor, row, {}, model.device) for row in rows]
    drawn = respond(model, prompts, decoding, seed=seed)
    signals, credit = per_token_signals(*scored(model, processor, drawn, seed))
    texts = processor.batch_decode(drawn.ids, skip_special_tokens=True)
    verdicts = grade(texts, [row["answer"] for row in rows])
    return [
        Response(
            row["problem"],
            row["images"][0].height // CELL,
            texts[i],
            tokens_of(
                processor,
                drawn.ids[i][drawn.mask[i]],
                {name: each[i][drawn.mask[i]] for name, each in signals.items()},
                {name: each[i][drawn.mask[i]] for name, each in credit.items()},
            ),
            verdicts[i],
        )
        for i, row in enumerate(rows)
    ]


def scored(model: PreTrainedModel, processor: ProcessorMixin, drawn: Responses, seed: int) -> tuple[Scores, Signals]:
    """Scores of the responses after their images, and all signals of the shapings, halfway through a training."""
    num_rows = len(drawn.ids)
    groups = torch.arange(num_rows)
    ids, banned = visual_token_ids(model.config), banned_token_ids(model.config)
    without = {}
    with evaluation_mode(model):
        seen = score_rows(model, drawn.rows, ids, share=False, similarity=True, layer_similarity=True)
        for name, make_view in ABLATIONS.items():
            rows_without = behind(drawn.rows, make_view(model.config, processor, seed, banned), groups)
            without[name] = score_rows(model, rows_without, ids, share=False, similarity=False)
    signals_seen = Signals(
        response_mask=drawn.mask,
        group_ids=groups,
        visual_rows=torch.ones(num_rows, dtype=torch.bool),
        progress=torch.full((num_rows,), 0.5),
        **seen.signals(),
        **{name: scores.log_probs for name, scores in without.items()},
    )
    return seen, signals_seen


def per_token_signals(seen: Scores, signals_seen: Signals) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Each signal, and each method's credit, per token; (B, T) each."""
    mask = signals_seen.response_mask
    shaped = {
        name: build_shaping(shaping, options).shape(torch.ones(len(mask)), signals_seen)
        for name, (shaping, options) in METHODS.items()
    }
    # Within a rollout: what a method does between rollouts does not depend on roles.
    credit = {name: share_of_credit(each.advantages, mask) for name, each in shaped.items()}
    signals = {
        "focus": (seen.similarity + 1) / 2,
        "focus, predicting state": (seen.predicting_similarity + 1) / 2,
        "gate": shaped["vgpo"].diagnostics["gate"].float(),
        "layer similarity": seen.layer_similarity,
        "black patches": token_dependency(seen.log_probs, signals_seen.corrupted_log_probs, mask),
        "no image": token_dependency(seen.log_probs, signals_seen.text_only_log_probs, mask),
        "entropy": seen.entropy,
    }
    return signals, credit


def share_of_credit(advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Advantages (B, T) by token as multiples of their mean over the rollout."""
    return advantages / ((advantages * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True))


def behind(rows: Rows, view: InputAblation, groups: torch.Tensor) -> Rows:
    """The same responses behind prompts with less to look at."""
    prompts = ablate_prompts(rows.prompts, groups, view)
    columns = prompt_columns(prompts, 0, rows.input_ids.device)
    after = slice(rows.prompt_width, None)
    return Rows(
        torch.cat([columns["prompt_ids"], rows.input_ids[:, after]], dim=1),
        torch.cat([columns["prompt_mask"], rows.attention_mask[:, after]], dim=1),
        columns["prompt_ids"].shape[1],
        prompts,
    )


def tokens_of(
    processor: ProcessorMixin, ids: torch.Tensor, signals: dict[str, torch.Tensor], credit: dict[str, torch.Tensor]
) -> list[Token]:
    texts = [processor.tokenizer.decode([token]) for token in ids.tolist()]

    def at(place: int, named: dict[str, torch.Tensor]) -> dict[str, float]:
        return {name: float(values[place]) for name, values in named.items()}

    return [
        Token(text, role, at(i, signals), at(i, credit))
        for i, (text, role) in enumerate(zip(texts, roles(texts), strict=True))
    ]


def roles(texts: Sequence[str]) -> list[str]:
    """What each token of a chain is for."""
    found, state = [], "answer"
    for text in texts:
        word = text.strip()
        if word.startswith("row ") or word in CLOSING:
            state = READ if word.startswith("row ") else "answer"
            found.append(GO_ON)
        elif word == ",":
            state = "working"
            found.append("punctuation")
        elif word == ".":
            state = "answer"
            found.append("punctuation")
        elif word.isdigit():
            found.append(state)
        elif state == READ and word.isalpha():
            found.append(GUESS)
        else:
            found.append("frame")
    return found


def role_table(responses: Sequence[Response], what: str) -> str:
    """Mean of each signal, or of each method's credit, over the tokens of each role."""
    by_role: dict[str, list[Token]] = defaultdict(list)
    for response in responses:
        for token in response.tokens:
            by_role[token.role].append(token)
    total = sum(len(tokens) for tokens in by_role.values())
    names = list(vars(responses[0].tokens[0])[what])
    rows = [
        [
            role,
            f"{len(tokens) / total:.0%}",
            *(f"{np.mean([vars(t)[what][name] for t in tokens]):.2f}" for name in names),
        ]
        for role, tokens in sorted(by_role.items(), key=lambda item: -len(item[1]))
    ]
    return table([f"{what} by role", "share", *names], rows)


def separation_table(responses: Sequence[Response]) -> str:
    """How well a signal ranks digits that are read above other tokens: at the token, and at the one before it."""
    rows = []
    for name in responses[0].tokens[0].signals:
        at, before = [], []
        for response in responses:
            reads = [token.role == READ for token in response.tokens]
            values = [token.signals[name] for token in response.tokens]
            at += zip(values, reads, strict=True)
            before += zip(values[:-1], reads[1:], strict=True)
        rows.append([name, f"{area_under_curve(at):.2f}", f"{area_under_curve(before):.2f}"])
    return table(["signal", "at the token", "at the token before"], rows)


def area_under_curve(pairs: Sequence[tuple[float, bool]]) -> float:
    """Chance that a token that needs the image lies above one that does not; ties count half."""
    values, needs = np.array([value for value, _ in pairs]), np.array([need for _, need in pairs])
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    num_needed = needs.sum()
    return float((ranks[needs].sum() - num_needed * (num_needed + 1) / 2) / (num_needed * (~needs).sum()))


def outcome_table(responses: Sequence[Response]) -> str:
    """Right answers, and how wrong ones come about."""
    outcomes = Counter(outcome(response) for response in responses)
    rows = [[name, str(count), f"{count / len(responses):.1%}"] for name, count in sorted(outcomes.items())]
    return table(["outcome", "responses", "share"], rows)


def outcome(response: Response) -> str:
    """Of a right answer `right`; of a wrong one what came first."""
    if response.correct:
        return "right"
    if "much the same" in response.text:
        return "wrong: a row guessed"
    asks_for_a_row = re.search(r"sum of row (\d+)", response.problem)
    asks_for_rows = "largest digits of row" in response.problem
    if not asks_for_rows and len(ROW.findall(response.text)) < (1 if asks_for_a_row else response.num_rows):
        return "wrong: rows left out"
    return "wrong: all rows read, a digit or a step is wrong"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
