"""Schema of an inspection file, version 1: one pydantic record per JSON object (docs/inspect.md)."""

import base64
from datetime import datetime
from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from vgpo.records import Numbers, Record, Texts, Whole, describe_faults, describe_value, fault

VERSION = 1
ABLATIONS = BLANK, OTHER, RESAMPLED = "blank", "other", "again"


class InspectionError(ValueError):
    """Not a valid inspection; the message says where, what was found, what was expected and how to fix it."""


def iso_time(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise fault(f"found {describe_value(text)}, expected a time in ISO 8601") from error
    return text


def base64_bytes(data: Any) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (TypeError, ValueError) as error:
        raise fault(f"found {describe_value(data)}, expected base64 text ({error})") from error


class AnswersRecord(Record):
    """Responses generated for the inspection."""

    origin: Literal["answers"] = Field(alias="from")
    temperature: float
    """0 if greedy."""
    seed: int
    max_new_tokens: int


class StoredRecord(Record):
    """Responses that are stored rollouts of a run."""

    origin: Literal["rollouts"] = Field(alias="from")
    steps: Annotated[list[int], Field(min_length=2, max_length=2)]
    """First and last step."""


class ModelRecord(Record):
    name: str
    path: str
    family: str
    """`model_type` of its config."""


class HeadRecord(Record):
    """The file; each of its questions is a `QuestionRecord`, checked one at a time."""

    version: int
    vgpo: str
    """Version of the package that wrote the file."""
    created: Annotated[str, AfterValidator(iso_time)]
    settings: dict[str, Any]
    """Fields of `vgpo.equations.VGPOSettings`."""
    responses: Annotated[AnswersRecord | StoredRecord, Field(discriminator="origin")]
    models: Annotated[list[ModelRecord], Field(min_length=1, max_length=2)]
    questions: list[Any]


class ImageRecord(Record):
    width: int
    """In pixels, as in the dataset."""
    height: int
    data: str
    """Data URI of the image, scaled down."""


class GridRecord(Record):
    """Positions of the map columns in an image; a column without a position is in no grid.

    Grids overlap if a model gets an image both completely and in tiles. There are none if the model's layout is
    unknown.
    """

    image: int
    """Index of its image."""
    name: str = "whole"
    """`whole`, `tile 1`, `tile 2` ..."""
    box: Annotated[list[float], Field(min_length=4, max_length=4, fail_fast=True)]
    """Left, top, right, bottom edge in fractions of the image; outside [0, 1] where cells extend into padding."""
    rows: PositiveInt
    columns: PositiveInt
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]
    """Map column of each cell, row by row."""
    averaged: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """Rows and columns of visual tokens per cell, if it is the mean of several."""

    @model_validator(mode="after")
    def check_cells(self) -> Self:
        if len(self.tokens) != self.rows * self.columns:
            raise fault(f"found {len(self.tokens)} tokens, expected {self.rows} rows x {self.columns} columns")
        return self


class AnswerRecord(Record):
    text: str
    predicted: str | None
    """The boxed answer."""
    correct: bool


class TokenRecord(Record):
    """One value per token; all are null for a question without an image; non-finite numbers are null."""

    similarity: Numbers | None
    """S (Eq. 3 of arXiv 2604.09349)."""
    focus: Numbers | None
    """rho (Eq. 4)."""
    gate: Annotated[list[bool], Field(fail_fast=True)] | None
    """G (Eq. 6)."""
    weight: Numbers | None
    """w (Eq. 5)."""
    token_factor: Numbers | None
    """1 + psi (Eq. 8)."""
    advantage: Numbers | None
    """A^V (Eq. 12); null without a group. A_i comes from the stored rollout, else from 0 / 1 accuracies."""


class PatchesRecord(Record):
    """Cosine of each token with each visual token: low + (high - low) * byte / 255."""

    low: float
    high: float
    columns: PositiveInt
    data: Annotated[bytes, BeforeValidator(base64_bytes)]
    """`columns` bytes per token, in base64."""
    peaks: Annotated[list[Whole], Field(fail_fast=True)]
    """For each token, and last for their mean: the column of each grid's highest cell, highest first, before rounding
    to bytes."""


class AttentionRecord(Record):
    """Share of each token's attention, in the last layer that attends."""

    image: Numbers
    question: Numbers
    generated: Numbers


class ResponseRecord(AnswerRecord, TokenRecord):
    """A response to a question."""

    model: int
    """Index of its model."""
    sample: int
    tokens: Texts
    truncated: bool
    """Whether the end token is missing."""
    rollout_factor: float | None
    """1 + phi (Eq. 11); null without a group."""
    late_early_ratio: float | None
    patches: PatchesRecord | None
    """Null without an image or tokens, or if a value is not finite."""
    attention: AttentionRecord | None
    without: dict[str, AnswerRecord | None] | None
    """By name in `ABLATIONS`: the answer with a black image and with another question's (null if no other question has
    as many images); for sampled responses also with the same image, sampled again."""

    @field_validator("model")
    @classmethod
    def check_model(cls, model: int, info: ValidationInfo) -> int:
        assert info.context is not None
        num_models = info.context["num_models"]
        if model not in range(num_models):
            raise fault(f"found {model}, expected the index of one of {num_models} models, from 0")
        return model

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        num_tokens = len(self.tokens)
        values = [([name], vars(self)[name]) for name in PER_TOKEN]
        values += [(["attention", name], shares) for name, shares in self.attention or ()]
        for place, found in values:
            if found is not None and len(found) != num_tokens:
                raise fault(f"found {len(found)} values, expected {num_tokens}, one for each token", *place)
        return self

    @model_validator(mode="after")
    def check_map(self) -> Self:
        if self.patches is None:
            return self
        num_tokens, num_bytes, num_lists = len(self.tokens), len(self.patches.data), len(self.patches.peaks)
        if num_bytes != num_tokens * self.patches.columns:
            message = f"found {num_bytes} bytes, expected {num_tokens} tokens x {self.patches.columns} columns"
            raise fault(message, "patches", "data")
        if num_lists != num_tokens + 1:
            message = f"found {num_lists} lists, expected {num_tokens + 1}, one for each token and one for their mean"
            raise fault(message, "patches", "peaks")
        return self


class QuestionRecord(Record):
    row: int
    """Row number in the dataset."""
    problem: str
    answer: str
    kind: str | None
    """Kind of problem, if the dataset names it."""
    images: list[ImageRecord]
    grids: list[GridRecord]
    rollouts: list[ResponseRecord]

    @model_validator(mode="after")
    def check_grids(self) -> Self:
        for place, grid in enumerate(self.grids):
            if grid.image not in range(len(self.images)):
                message = f"found {grid.image}, expected one of the {len(self.images)} of its question"
                raise fault(message, "grids", place, "image")
        return self

    @model_validator(mode="after")
    def check_maps(self) -> Self:
        columns = set(chain.from_iterable(grid.tokens for grid in self.grids))
        num_columns = 1 + max(columns, default=-1)
        for place, rollout in enumerate(self.rollouts):
            if rollout.patches and rollout.patches.columns < num_columns:
                message = f"found {rollout.patches.columns}, expected at least the {num_columns} that the grids name"
                raise fault(message, "rollouts", place, "patches", "columns")
            for token, peaks in enumerate(rollout.patches.peaks if rollout.patches else ()):
                if not columns.issuperset(peaks):
                    message = f"found {peaks}, expected columns that the grids name"
                    raise fault(message, "rollouts", place, "patches", "peaks", token)
        return self


PER_TOKEN = tuple(TokenRecord.model_fields)
ATTENDED = tuple(AttentionRecord.model_fields)


def check_head(data: Any, where: str) -> None:
    """Raise an InspectionError unless everything in `data` except the questions is valid."""
    version = data.get("version") if isinstance(data, dict) else VERSION
    if version != VERSION:
        raise InspectionError(
            f"{where}: found version {describe_value(version)}, expected {VERSION}; re-create it with this vgpo's "
            "`vgpo inspect`, or read it with the vgpo that wrote it"
        )
    validate(HeadRecord, data, where)


def check_question(data: Any, num_models: int, where: str) -> None:
    """Raise an InspectionError unless a question is complete and its numbers fit its tokens, grids and images."""
    validate(QuestionRecord, data, where, num_models=num_models)


def validate(record: type[Record], data: Any, where: str, **context: Any) -> None:
    """Raise an InspectionError with `where` and the first few faults unless `data` is a valid record."""
    try:
        record.model_validate(data, context=context)
    except ValidationError as error:
        raise InspectionError(f"{where}: {describe_faults(error)}; re-create it with `vgpo inspect`") from error
