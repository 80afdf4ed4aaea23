"""What an inspection's file must hold: version 1.

A JSON object: what stands in `HEAD`, of which `settings` are those of `vgpo.equations.VGPOSettings` and `models` are
one or two, each with `name`, `path` and `family`. `responses` says where the responses come from: `from` is `answers`,
with `temperature` (0 if greedy), `seed` and `max_new_tokens`; or `rollouts` that a run stored, with `steps`, the first
and the last. Of each question:

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
  picture; a single number is null where it is not finite.
  - `patches`, or null (no picture, no token, or a value that is not finite): cosine of each token with each visual
    token, `columns` bytes per token in base64 (`data`), value = `low` + (`high` - `low`) * byte / 255. `peaks`, for
    each token and last for their mean: the column of each grid's highest cell, highest first, by the values before
    they became bytes.
  - `attention`, or null: a share per token under `image`, `question` and `generated`.
  - `without`, or null: `blank` and `other`, each `text`, `predicted` and `correct` of the answer to the question with
    a black picture, and with another question's (null where no other has as many pictures). Beside sampled responses
    also `again`: with the same picture, drawn once more.
"""

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isfinite
from typing import Any

VERSION = 1
PER_TOKEN = ("similarity", "focus", "gate", "weight", "token_factor", "advantage")
ATTENDED = ("image", "question", "generated")
PICTURES = BLANK, OTHER, AGAIN = "blank", "other", "again"

Kinds = tuple[type, ...]
NULL = type(None)
NUMBER: Kinds = (int, float)
NAMES = {
    Mapping: "an object", list: "a list", str: "text", int: "a whole number", float: "a number",
    bool: "true or false", NULL: "null",
}  # fmt: skip

HEAD: dict[str, Kinds] = {
    "version": (int,),
    "vgpo": (str,),
    "created": (str,),
    "settings": (Mapping,),
    "responses": (Mapping,),
    "models": (list,),
    "questions": (list,),
}
RESPONSES: dict[str, dict[str, Kinds]] = {
    "answers": {"temperature": NUMBER, "seed": (int,), "max_new_tokens": (int,)},
    "rollouts": {"steps": (list,)},
}
MODEL: dict[str, Kinds] = {"name": (str,), "path": (str,), "family": (str,)}
QUESTION: dict[str, Kinds] = {
    "row": (int,),
    "problem": (str,),
    "answer": (str,),
    "kind": (str, NULL),
    "images": (list,),
    "grids": (list,),
    "rollouts": (list,),
}
IMAGE: dict[str, Kinds] = {"width": (int,), "height": (int,), "data": (str,)}
GRID: dict[str, Kinds] = {"image": (int,), "box": (list,), "rows": (int,), "columns": (int,), "tokens": (list,)}
ANSWER: dict[str, Kinds] = {"text": (str,), "predicted": (str, NULL), "correct": (bool,)}
ROLLOUT: dict[str, Kinds] = {
    "model": (int,),
    "sample": (int,),
    "tokens": (list,),
    **ANSWER,
    "truncated": (bool,),
    **dict.fromkeys(PER_TOKEN, (list, NULL)),
    "rollout_factor": (*NUMBER, NULL),
    "late_early_ratio": (*NUMBER, NULL),
    "patches": (Mapping, NULL),
    "attention": (Mapping, NULL),
    "without": (Mapping, NULL),
}
PATCHES: dict[str, Kinds] = {"low": NUMBER, "high": NUMBER, "columns": (int,), "data": (str,), "peaks": (list,)}


class InspectionError(ValueError):
    """What is not an inspection; the message says where, what was found, what was expected and what to do."""


def check_head(data: Any, where: str) -> None:
    """Raise an InspectionError unless `data` has all that stands before and around the questions."""
    if not isinstance(data, Mapping):
        raise InspectionError(f"{where}: found {found(data)}, expected a JSON object of `vgpo inspect`")
    if data.get("version") != VERSION:
        raise InspectionError(
            f"{where}: found version {data.get('version')!r}, expected {VERSION}; write it anew with this vgpo's "
            "`vgpo inspect`, or read it with the vgpo that wrote it"
        )
    check_fields(data, HEAD, where)
    check_responses(data["responses"], f"{where}, responses")
    try:
        datetime.fromisoformat(data["created"])
    except ValueError as error:
        raise InspectionError(f"{where}, created: found {data['created']!r}, expected a time of ISO 8601") from error
    if len(data["models"]) not in (1, 2):
        raise InspectionError(f"{where}: found {len(data['models'])} models, expected one or two")
    for place, model in enumerate(data["models"]):
        check_fields(model, MODEL, f"{where}, model {place}")


def check_responses(responses: Mapping[str, Any], where: str) -> None:
    source = responses.get("from")
    if source not in tuple(RESPONSES):
        raise InspectionError(f"{where}: found from {source!r}, expected one of {', '.join(RESPONSES)}")
    check_fields(responses, RESPONSES[source], where)
    if source == "rollouts":
        check_values(responses["steps"], (int,), f"{where}, steps", length=2)


def check_question(question: Any, num_models: int, where: str) -> None:
    """Raise an InspectionError unless a question is whole and its numbers fit its tokens, grids and pictures."""
    check_fields(question, QUESTION, where)
    for place, image in enumerate(question["images"]):
        check_fields(image, IMAGE, f"{where}, image {place}")
    for place, grid in enumerate(question["grids"]):
        check_grid(grid, len(question["images"]), f"{where}, grid {place}")
    columns = {token for grid in question["grids"] for token in grid["tokens"]}
    for place, rollout in enumerate(question["rollouts"]):
        check_rollout(rollout, num_models, columns, f"{where}, rollout {place}")


def check_grid(grid: Any, num_images: int, where: str) -> None:
    check_fields(grid, GRID, where)
    check_values(grid["box"], NUMBER, f"{where}, box", length=4)
    check_values(grid["tokens"], (int,), f"{where}, tokens")
    if grid["image"] not in range(num_images):
        raise InspectionError(
            f"{where}: found image {grid['image']!r}, expected one of the {num_images} of its question"
        )
    if len(grid["tokens"]) != grid["rows"] * grid["columns"]:
        raise InspectionError(
            f"{where}: found {len(grid['tokens'])} tokens, expected {grid['rows']} rows x {grid['columns']} columns"
        )
    if min(grid["tokens"], default=-1) < 0:
        raise InspectionError(f"{where}: found no token or one below 0, expected one or more, counted from 0")


def check_rollout(rollout: Any, num_models: int, columns: set[int], where: str) -> None:
    check_fields(rollout, ROLLOUT, where)
    if rollout["model"] not in range(num_models):
        raise InspectionError(f"{where}: found model {rollout['model']!r}, expected one of {num_models}")
    check_values(rollout["tokens"], (str,), f"{where}, tokens")
    length = len(rollout["tokens"])
    per_token = {name: rollout[name] for name in PER_TOKEN if rollout[name] is not None}
    if rollout["attention"] is not None:
        check_fields(rollout["attention"], dict.fromkeys(ATTENDED, (list,)), f"{where}, attention")
        per_token |= {name: rollout["attention"][name] for name in ATTENDED}
    for name, values in per_token.items():
        check_values(values, (bool,) if name == "gate" else (*NUMBER, NULL), f"{where}, {name}", length=length)
    if rollout["patches"] is not None:
        check_patches(rollout["patches"], length, columns, f"{where}, patches")
    for name, answer in (rollout["without"] or {}).items():
        if answer is not None:
            check_fields(answer, ANSWER, f"{where}, without {name}")


def check_patches(patches: Any, length: int, columns: set[int], where: str) -> None:
    check_fields(patches, PATCHES, where)
    try:
        num_bytes = len(base64.b64decode(patches["data"], validate=True))
    except ValueError as error:
        raise InspectionError(f"{where}: data is not base64 text ({error})") from error
    num_columns = 1 + max(columns, default=-1)
    if num_bytes != length * patches["columns"] or patches["columns"] < num_columns:
        raise InspectionError(
            f"{where}: found {num_bytes} bytes in {patches['columns']} columns, expected {length} tokens x columns, "
            f"and at least the {num_columns} columns that the grids name"
        )
    check_values(patches["peaks"], (list,), f"{where}, peaks", length=length + 1)
    for place, peaks in enumerate(patches["peaks"]):
        check_values(peaks, (int,), f"{where}, peaks {place}")
        if not columns.issuperset(peaks):
            raise InspectionError(f"{where}, peaks {place}: found {peaks}, expected columns that the grids name")


def check_fields(value: Any, fields: Mapping[str, Kinds], where: str) -> None:
    if not isinstance(value, Mapping):
        raise InspectionError(f"{where}: found {found(value)}, expected an object")
    missing = [name for name in fields if name not in value]
    if missing:
        raise InspectionError(f"{where}: {', '.join(missing)} missing; write it anew with `vgpo inspect`")
    for name, kinds in fields.items():
        if not fits(value[name], kinds):
            raise InspectionError(f"{where}, {name}: found {found(value[name])}, expected {expected(kinds)}")


def check_values(values: Sequence[Any], kinds: Kinds, where: str, *, length: int | None = None) -> None:
    if length is not None and len(values) != length:
        raise InspectionError(f"{where}: found {len(values)} values, expected {length}")
    wrong = [value for value in values if not fits(value, kinds)]
    if wrong:
        raise InspectionError(f"{where}: found {found(wrong[0])} among its values, expected {expected(kinds)}")


def fits(value: Any, kinds: Kinds) -> bool:
    """Whether a value is of one of these kinds; a sign is no number, and neither is what is not finite."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) and (not isinstance(value, float) or isfinite(value))


def found(value: Any) -> str:
    return str(value) if isinstance(value, float) else type(value).__name__


def expected(kinds: Kinds) -> str:
    return " or ".join(NAMES[kind] for kind in kinds if kind is not int or float not in kinds)
