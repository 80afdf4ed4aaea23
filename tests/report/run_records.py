"""Records as a trainer and an evaluation hand them over."""

from collections.abc import Iterable
from typing import Any

from PIL import Image

from vgpo.run import RunFolder
from vgpo.training.records import VERSION, RolloutRecord, advantages_0_1, is_correct, stored_image

ATTACKS = [
    "</script><script>document.title = 'broken'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "\u2028\u2029 & &lt; ]]> {{ 7 * 7 }}",
    "\x00\x07\x1b[2J\x7f\x85\u202eright to left",
    "\ud800",
]


# A line of rollouts.jsonl as vgpo 0.1 wrote it; its second token is of a tool.
LINE_0_1 = {
    "step": 3,
    "group": 5,
    "row": 7,
    "id": "seven",
    "problem": "<image>How many?",
    "answer": "2",
    "images": ["images/a.png"],
    "completion": "two tools 2",
    "token_ids": [5, 6, 7],
    "tokens": ["two", " tools", " 2"],
    "focus": [0.5, None, 0.25],
    "advantage": -2.0,
    "rewards": {"format_reward": 1.0, "accuracy_reward": 0.0},
    "gate": [True, None, False],
    "token_factor": [1.5, None, 0.5],
    "rollout_factor": 1.25,
}


Rollout = tuple[RolloutRecord, dict[str, Image.Image]]


def rollout(step: int = 1, group: int = 0, reward: float | None = 1.0, **changes: Any) -> Rollout:
    """A rollout of four tokens and its images, as `rollout_records` makes them.

    changes: fields of the record; `images` instead of `media`; a diagnostic by its name, None for none. Values per
    token are repeated for as many tokens as there are.
    """
    tokens = changes.pop("tokens", ["two", ":", " 2", "."])

    def per_token(*values: Any) -> list[Any]:
        return [values[i % len(values)] for i in range(len(tokens))]

    shaped = {"gate": per_token(False, False, True, False), "token_factor": per_token(1.0, 0.5, 1.5, 1.0)}
    diagnostics = {name: changes.pop(name, value) for name, value in {**shaped, "rollout_factor": 1.1}.items()}
    images = changes.pop("images", [Image.new("RGB", (20, 10), (step % 256, 0, 0))])
    stored = [stored_image(image) for image in images]
    fields = {
        "version": VERSION,
        "step": step,
        "group": group,
        "row": 7,
        "id": "7",
        "problem": "<image>How many 7s are in the picture?",
        "answer": "2",
        "media": [name for name, _ in stored],
        "completion": "two: 2.",
        "token_ids": per_token(3, 1, 4, 1),
        "tokens": tokens,
        "focus": per_token(0.5, 0.25, 0.75, 0.5),
        "advantage": 0.7,
        "rewards": {"accuracy_reward": reward},
        "diagnostics": {name: value for name, value in diagnostics.items() if value is not None},
        **changes,
    }
    verdict = is_correct(next(iter(fields["rewards"].values()), None))
    record = RolloutRecord(**{"correct": verdict, "token_advantages": None, **fields})
    if "token_advantages" not in changes:
        record = record.model_copy(update={"token_advantages": advantages_0_1(record)})
    return record, dict(stored)


def handed_over(rollouts: Iterable[Rollout]) -> tuple[list[RolloutRecord], dict[str, Image.Image]]:
    """What a `rollout_writer` takes."""
    records, images = zip(*rollouts, strict=True)
    return list(records), {name: image for one in images for name, image in one.items()}


def evaluation(accuracy: float, low: float, high: float) -> dict:
    """400 questions, of which the first ones are answered right."""
    correct = [place < round(400 * accuracy) for place in range(400)]
    counts = {"num_questions": 400, "num_correct": sum(correct)}
    return {"accuracy": accuracy, "low": low, "high": high, "answers": answers(correct), **counts}


def answers(correct: Iterable[bool], **changes: Any) -> list[dict[str, Any]]:
    """The answers of evaluation.json to questions 0, 1, ...; `changes` of all of them."""
    return [
        {
            "problem": f"<image>What is {number}?",
            "answer": str(number),
            "completion": f"So \\boxed{{{number if is_right else 'no'}}}",
            "predicted": str(number) if is_right else "no",
            "truncated": False,
            "oversized": False,
            "correct": is_right,
            **changes,
        }
        for number, is_right in enumerate(correct)
    ]


def fill(folder: RunFolder, num_steps: int = 4, **metrics: float) -> RunFolder:
    for step in range(1, num_steps + 1):
        line = {"reward": step / 10, "rewards/accuracy_reward/mean": step / 10, "entropy": 1 / step, **metrics}
        folder.log_metrics({"step": step, "epoch": 0.1 * step, "time": step, **line})
        folder.write_rollouts(*handed_over(rollout(step, 2 * step, reward) for reward in (1.0, 1.0, 0.0)))
    return folder


def hostile_run(make_run, name: str = "run") -> RunFolder:
    folder = make_run(name, model_name_or_path=ATTACKS[0] + "\ud800", other=ATTACKS[2])
    for number, attack in enumerate(ATTACKS):
        texts = {"problem": attack, "answer": attack, "tokens": [attack, *ATTACKS], "completion": attack}
        per_token = {"focus": [0.5] * 7, "gate": [True] * 7, "token_factor": [1.0] * 7}
        folder.write_rollouts(*handed_over([rollout(number + 1, number, **texts, **per_token, rewards={attack: 1.0})]))
    return folder
