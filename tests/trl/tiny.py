"""Small things to train on."""

from typing import Any

from datasets import Dataset
from PIL import Image

GROUP = 4  # rollouts of a prompt


def rows_with_pictures(num_rows: int = 8, cells: int = 2) -> Dataset:
    """Prompts of different lengths, each with an image of its own size and colour."""
    rows = []
    for i in range(num_rows):
        picture = Image.new("RGB", (28 * cells, 28 * (1 + i % cells)), (30 * i % 256, 90, 200))
        text = "What is the largest digit" + " in the picture" * (i % 3)
        content = [{"type": "image"}, {"type": "text", "text": text}]
        rows.append({"prompt": [{"role": "user", "content": content}], "images": [picture], "answer": str(i)})
    return Dataset.from_list(rows)


def mixed_rows(num_rows: int = 8) -> Dataset:
    """Every other row has no image."""
    rows = rows_with_pictures(num_rows)
    text = {"prompt": [{"role": "user", "content": [{"type": "text", "text": "What"}]}], "images": [], "answer": "1"}
    return Dataset.from_list([text if i % 2 else rows[i] for i in range(num_rows)], features=rows.features)


# Metrics that no two runs share.
TIMED = ("time", "runtime", "per_second", "profiling")


def told(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was logged, but for times."""
    return [{name: value for name, value in line.items() if not any(word in name for word in TIMED)} for line in log]


def coin(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A reward that differs between rollouts and between nothing else: 1 if their tokens add up to an even number."""
    return [float(sum(ids) % 2 == 0) for ids in completion_ids]
