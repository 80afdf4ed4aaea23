"""What an inspection's file must hold: version 1.

A JSON object: what stands in `HEAD`, of which `settings` are those of `vgpo.equations.VGPOSettings`, `temperature` is
0 for greedy answers, and `models` are one or two, each with `name`, `path` and `family`. Of each question:

- `row` of the data set, `problem`, `answer`, and the `kind` of problem that the data set names, or null.
- `images`: `width` and `height` as the data set has them, and `data`, a data URI of the picture, made smaller.
- `grids`: where the columns of the maps stand. `image`, from 0; `name`; `box`, left, top, right and bottom edge in
  fractions of that picture, which reach out of [0, 1] where cells reach into padding; `rows` and `columns` of cells,
  and `tokens`, a column for each cell, row by row. Grids of a picture that a model sees whole and in tiles lie over
  each other. A column that stands for no place is in none. `averaged`, if it is there: rows and columns of visual
  tokens in a cell. No grid at all where it is not known how the model cuts pictures up.
- `rollouts`: by `model` (0 or 1) and `sample`, `tokens`, `text`, `predicted` (the boxed answer, or null), `correct`,
  `truncated` (no end token). A number per token: `similarity` S (Eq. 3 of arXiv 2604.09349), `focus` rho (4), `gate`
  (6), `weight` w (5), `token_factor` 1 + psi (8), `advantage` A^V (12); for the rollout, `rollout_factor` 1 + phi
  (11) and `late_early_ratio`. `advantage` and `rollout_factor` are null for a response that has no group; their A_i
  is the one that a stored rollout was given, else that of 0 / 1 accuracies. All are null where the question has no
  picture.
  - `patches`, or null: cosine of each token with each visual token, `columns` bytes per token in base64 (`data`),
    value = `low` + (`high` - `low`) * byte / 255.
  - `attention`, or null: a share per token under `image`, `question` and `generated`.
  - `without`, or null: `blank` and `other`, each `text`, `predicted` and `correct` of the answer to the question with
    a black picture, and with another question's (null where no other has as many pictures).
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

VERSION = 1
HEAD = ("version", "vgpo", "created", "settings", "temperature", "seed", "max_new_tokens", "models", "questions")
MODEL = ("name", "path", "family")
QUESTION = ("row", "problem", "answer", "kind", "images", "grids", "rollouts")
IMAGE = ("width", "height", "data")
GRID = ("image", "box", "rows", "columns", "tokens")
PER_TOKEN = ("similarity", "focus", "gate", "weight", "token_factor", "advantage")
ROLLOUT = (
    "model", "sample", "tokens", "text", "predicted", "correct", "truncated", *PER_TOKEN, "rollout_factor",
    "late_early_ratio", "patches", "attention", "without",
)  # fmt: skip
PATCHES = ("low", "high", "columns", "data")


class InspectionError(ValueError):
    """What is not an inspection; the message says where, what was found, what was expected and what to do."""


def check_head(data: Any, where: str) -> None:
    """Raise an InspectionError unless `data` has all that stands before and around the questions."""
    if not isinstance(data, Mapping):
        raise InspectionError(f"{where}: found {type(data).__name__}, expected a JSON object of `vgpo inspect`")
    if data.get("version") != VERSION:
        raise InspectionError(
            f"{where}: found version {data.get('version')!r}, expected {VERSION}; write it anew with this vgpo's "
            "`vgpo inspect`, or read it with the vgpo that wrote it"
        )
    check_keys(data, HEAD, where)
    if len(data["models"]) not in (1, 2):
        raise InspectionError(f"{where}: found {len(data['models'])} models, expected one or two")
    for place, model in enumerate(data["models"]):
        check_keys(model, MODEL, f"{where}, model {place}")


def check_question(question: Any, num_models: int, where: str) -> None:
    """Raise an InspectionError unless a question is whole and its numbers fit its tokens, grids and pictures."""
    check_keys(question, QUESTION, where)
    for place, image in enumerate(question["images"]):
        check_keys(image, IMAGE, f"{where}, image {place}")
    for place, grid in enumerate(question["grids"]):
        check_grid(grid, len(question["images"]), f"{where}, grid {place}")
    num_columns = 1 + max((token for grid in question["grids"] for token in grid["tokens"]), default=-1)
    for place, rollout in enumerate(question["rollouts"]):
        check_rollout(rollout, num_models, num_columns, f"{where}, rollout {place}")


def check_grid(grid: Any, num_images: int, where: str) -> None:
    check_keys(grid, GRID, where)
    if grid["image"] not in range(num_images):
        raise InspectionError(
            f"{where}: found image {grid['image']!r}, expected one of the {num_images} of its question"
        )
    if len(grid["tokens"]) != grid["rows"] * grid["columns"]:
        raise InspectionError(
            f"{where}: found {len(grid['tokens'])} tokens, expected {grid['rows']} rows x {grid['columns']} columns"
        )


def check_rollout(rollout: Any, num_models: int, num_columns: int, where: str) -> None:
    check_keys(rollout, ROLLOUT, where)
    if rollout["model"] not in range(num_models):
        raise InspectionError(f"{where}: found model {rollout['model']!r}, expected one of {num_models}")
    length = len(rollout["tokens"])
    attention = rollout["attention"] or {}
    for name, values in [*((name, rollout[name]) for name in PER_TOKEN), *attention.items()]:
        if values is not None and len(values) != length:
            raise InspectionError(
                f"{where}: {name!r} has {len(values)} values, expected one for each of {length} tokens"
            )
    if rollout["patches"] is not None:
        check_patches(rollout["patches"], length, num_columns, f"{where}, patches")


def check_patches(patches: Any, length: int, num_columns: int, where: str) -> None:
    check_keys(patches, PATCHES, where)
    try:
        num_bytes = len(base64.b64decode(patches["data"], validate=True))
    except (binascii.Error, TypeError) as error:
        raise InspectionError(f"{where}: data is not base64 text ({error})") from error
    if num_bytes != length * patches["columns"] or patches["columns"] < num_columns:
        raise InspectionError(
            f"{where}: found {num_bytes} bytes in {patches['columns']} columns, expected {length} tokens x columns, "
            f"and at least the {num_columns} columns that the grids name"
        )


def check_keys(value: Any, keys: Iterable[str], where: str) -> None:
    if not isinstance(value, Mapping):
        raise InspectionError(f"{where}: found {type(value).__name__}, expected an object")
    missing = [key for key in keys if key not in value]
    if missing:
        raise InspectionError(f"{where}: {', '.join(missing)} missing; write it anew with `vgpo inspect`")
