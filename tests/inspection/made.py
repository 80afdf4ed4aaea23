"""Made-up inspections: every shape that a page must draw, without a model."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from vgpo.equations import VGPOSettings

WORDS = ("row", " 1", ":", " 8", " 4", ",", " total", " is", " 7", ".", "\n", "so", " the", " largest", " one")


def inspection(questions: list[dict[str, Any]], models: tuple[str, ...] = ("start", "trained")) -> dict[str, Any]:
    return {
        "version": 1,
        "vgpo": "0.1.0",
        "created": "2026-11-23T04:05:06+00:00",
        "settings": vars(VGPOSettings()),
        "responses": {"from": "answers", "temperature": 0.0, "seed": 0, "max_new_tokens": 64},
        "models": [{"name": name, "path": f"runs/{name}", "family": "vgpo_toy"} for name in models],
        "questions": questions,
    }


def question(row: int = 0, rollouts: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """One image, one grid of 2 x 3 cells, and a rollout of each of two models."""
    made = {
        "row": row,
        "problem": "<image>How many 4s are in the picture?",
        "answer": "2",
        "kind": "count",
        "images": [picture(row)],
        "grids": [grid()],
        "rollouts": [rollout(0, seed=row), rollout(1, seed=row + 1000)] if rollouts is None else rollouts,
    }
    return {**made, **changes}


def picture(seed: int = 0, width: int = 96, height: int = 64) -> dict[str, Any]:
    noise = np.random.default_rng(seed).integers(0, 255, size=(6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(buffer, format="JPEG")
    data = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return {"width": width, "height": height, "data": data}


def grid(image: int = 0, rows: int = 2, columns: int = 3, first: int = 0, **changes: Any) -> dict[str, Any]:
    tokens = list(range(first, first + rows * columns))
    return {"image": image, "box": [0.0, 0.0, 1.0, 1.0], "rows": rows, "columns": columns, "tokens": tokens, **changes}


def tiled(rows: int = 2, columns: int = 2) -> list[dict[str, Any]]:
    """An image seen whole, and in two tiles whose visual tokens come first, each row ended by a newline token."""
    grids = []
    first = 0
    for tile in range(2):
        box = [tile / 2, 0.0, (tile + 1) / 2, 1.0]
        tokens = [first + row * (columns + 1) + column for row in range(rows) for column in range(columns)]
        grids.append(grid(rows=rows, columns=columns, box=box, name=f"tile {tile + 1}", tokens=tokens))
        first += rows * (columns + 1)
    return [*grids, grid(rows=rows, columns=columns, first=first, name="whole")]


def num_visual(grids: list[dict[str, Any]]) -> int:
    return max((token for one in grids for token in one["tokens"]), default=-1) + 1


def rollout(
    model: int = 0,
    num_tokens: int = 12,
    num_visual: int = 6,
    *,
    seed: int = 0,
    grids: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A rollout whose numbers agree with each other as the equations want it (beta 0.3, gate on the last tokens).

    `grids` of its question; by default one over all visual tokens.
    """
    random = np.random.default_rng(seed)
    places = np.arange(1, num_tokens + 1)
    patches = smooth(random.normal(size=(num_tokens, num_visual))) * 0.3
    similarity = patches.mean(axis=1)
    focus = (similarity + 1) / 2
    gate = (places > num_tokens / 2) & (random.random(num_tokens) < 0.3)
    weight = focus * (1 + gate * 0.3 * places / num_tokens)
    unit = (weight - weight.min()) / (np.ptp(weight) + 1e-8)
    factor = 1 + unit - unit.mean()
    correct = bool(random.random() < 0.5)
    half = num_tokens // 2
    made = {
        "model": model,
        "sample": 0,
        "tokens": [WORDS[(place + seed) % len(WORDS)] for place in range(num_tokens)],
        "text": "",
        "predicted": "2" if correct else "3",
        "correct": correct,
        "truncated": False,
        "similarity": similarity.tolist(),
        "focus": focus.tolist(),
        "gate": gate.tolist(),
        "weight": weight.tolist(),
        "token_factor": factor.tolist(),
        "rollout_factor": 1.1,
        "advantage": (0.7 * factor * 1.1).tolist(),
        "late_early_ratio": float(focus[half:].mean() / focus[:half].mean()) if half else None,
        "patches": pack(patches, grids),
        "attention": attention(num_tokens),
        "without": {
            "blank": {"text": "3", "predicted": "3", "correct": False},
            "other": {"text": "2", "predicted": "2", "correct": True},
        },
    }
    return {**made, **changes}


def smooth(values: np.ndarray) -> np.ndarray:
    """Along the tokens, as maps of neighbouring tokens are alike."""
    for place in range(1, len(values)):
        values[place] = 0.8 * values[place - 1] + 0.6 * values[place]
    return values


def pack(patches: np.ndarray, grids: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """`patches` (T, V) as the file holds them."""
    columns = [one["tokens"] for one in grids] if grids else [list(range(patches.shape[1]))]
    rows = [*patches, patches.mean(axis=0)]
    peaks = [sorted((max(ones, key=row.__getitem__) for ones in columns), key=lambda one: -row[one]) for row in rows]
    low, high = float(patches.min()), float(patches.max())
    levels = np.round((patches - low) / ((high - low) or 1) * 255).astype(np.uint8)
    data = base64.b64encode(levels.tobytes()).decode("ascii")
    return {"low": low, "high": high, "columns": patches.shape[1], "data": data, "peaks": peaks}


def attention(num_tokens: int) -> dict[str, list[float]]:
    places = np.arange(num_tokens) / num_tokens
    image, generated = 0.3 - 0.2 * places, 0.5 * places
    return {"image": image.tolist(), "question": (1 - image - generated).tolist(), "generated": generated.tolist()}


def blind(model: int = 0, **changes: Any) -> dict[str, Any]:
    """A rollout to a question without an image."""
    names = ("similarity", "focus", "gate", "weight", "token_factor", "rollout_factor", "advantage")
    nothing = dict.fromkeys((*names, "late_early_ratio", "patches", "attention", "without"))
    return rollout(model, **{**nothing, **changes})


def unmoved(model: int = 0, **changes: Any) -> dict[str, Any]:
    """A rollout whose answer does not need its image; no other image was available."""
    again = {"text": "7", "predicted": "7", "correct": False}
    return rollout(model, predicted="7", correct=False, without={"blank": again, "other": None}, **changes)


def without_picture(row: int = 0) -> dict[str, Any]:
    return question(row, [blind(0), blind(1)], problem="What is 1 + 1?", images=[], grids=[], kind=None)


def odd() -> dict[str, Any]:
    """All that may be missing, and all that there may be several of, in one inspection of two models."""
    tiles = tiled()
    two = [grid(0), grid(1, rows=3, columns=2, first=6, averaged=[2, 2])]
    nothing = {"tokens": [], "similarity": [], "focus": [], "gate": [], "weight": [], "token_factor": []}
    empty = rollout(0, 1, **nothing, advantage=[], late_early_ratio=None, patches=None, attention=None, predicted=None)
    return inspection(
        [
            question(
                3,
                [rollout(m, num_visual=num_visual(tiles), seed=m, grids=tiles) for m in (0, 1)],
                grids=tiles,
                kind="tiles",
            ),
            question(
                1,
                [rollout(m, num_visual=12, seed=m, grids=two) for m in (0, 1)],
                images=[picture(1), picture(2)],
                grids=two,
            ),
            without_picture(2),
            question(4, [rollout(m, sample=s, seed=10 * m + s) for m in (0, 1) for s in range(3)]),
            question(5, [empty, rollout(1, 1, truncated=True)]),
            question(6, [rollout(0, attention=None, without=None, patches=None), unmoved(1, advantage=None)]),
            question(7, [rollout(1)], kind=None),
        ]
    )
