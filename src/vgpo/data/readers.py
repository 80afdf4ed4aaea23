"""Readers of the row formats in use: from the columns of a set to `problem`, `answer`, `id` and `meta`.

A reader sees the texts of a row and never its pictures; those stay where they are stored.
"""

import ast
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa

from vgpo.data.errors import DataError
from vgpo.data.progress import with_bar
from vgpo.data.references import unwrapped
from vgpo.data.schema import (
    ANSWER,
    ID,
    IMAGE_MARK,
    IMAGES,
    META,
    PROBLEM,
    listed,
    missing_column,
    no_row,
    quantity,
)
from vgpo.text import did_you_mean

Row = dict[str, Any]
Turns = list[tuple[str, str]]

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = {"human": USER, USER: USER, "gpt": ASSISTANT, ASSISTANT: ASSISTANT, SYSTEM: SYSTEM}
LETTERS = "ABCDEFGHIJ"
OTHER_MEDIA = ("video", "videos", "audio", "audios")
IN_PICTURE = "Answer the question in the picture."

_LONGEST_OPTIONS = 20_000  # characters of a list of options that are parsed
_DEEPEST = 32  # types in one another in a column of meta; Arrow does not pass on more than 64

logger = logging.getLogger(__name__)


class RowError(ValueError):
    """What is wrong with a row: the field and the complaint, with what to do."""

    def __init__(self, field: str, complaint: str) -> None:
        super().__init__(f"field {field!r}: {complaint}")


@dataclass(frozen=True)
class Format:
    """One way to write a row.

    columns: what the reader takes and the format is recognised by; "a|b" is either. images: the columns of pictures,
    by preference, or all together where they are numbered. read: texts of a row to problem and answer. id: the
    column of the row's name. optional: read where they are there. kept: of the columns, those that go into `meta` as
    well; every column not named here does.
    """

    columns: tuple[str, ...]
    images: tuple[str, ...]
    read: Callable[[Row], Row]
    id: str = ID
    optional: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def missing(self, found: Sequence[str]) -> list[str]:
        """The columns that a set of the columns `found` lacks."""
        return [name for name in self.columns if not set(name.split("|")) & set(found)]

    def picture_columns(self, found: Sequence[str]) -> list[str]:
        there = [name for name in self.images if name in found]
        return there if all(name[-1].isdigit() for name in there) else there[:1]

    def taken(self) -> set[str]:
        """The columns that become problem, answer and id, and stay out of `meta`."""
        parts = {part for name in (*self.columns, *self.optional, self.id) for part in name.split("|")}
        return parts - set(self.kept)


@dataclass(frozen=True)
class StoredSet:
    """A set in the columns in which it is stored, whose texts are read without its pictures.

    texts: the rows of these columns. pictures: these columns as one, `images`. binary: columns that hold bytes.
    """

    columns: list[str]
    num_rows: int
    texts: Callable[[list[str]], Iterable[Row]]
    pictures: Callable[[list[str]], datasets.Dataset]
    binary: frozenset[str] = frozenset()


def to_canonical(dataset: datasets.Dataset, name: str | None = None) -> datasets.Dataset:
    """`dataset` with the columns images, problem, answer, id (text) and, where it has more columns, meta.

    Pictures stay undecoded and where they are stored; texts are held in memory. Rows keep their numbers. A column of
    `meta` whose rows are of several types is text.
    name: a key of `FORMATS`; None recognises the format by its columns, and a log line says which it is.
    DataError for no row, an unknown format, columns that it lacks, or rows that it cannot read (the first ten).
    """
    return canonical_rows(stored(dataset), name)


def stored(dataset: datasets.Dataset) -> StoredSet:
    """A data set in memory or in Arrow files, as it is."""
    kinds = {field.name: str(field.type) for field in dataset.features.arrow_schema}
    return StoredSet(
        columns=dataset.column_names,
        num_rows=len(dataset),
        texts=dataset.select_columns,
        pictures=lambda names: _picture_column(dataset, names),
        binary=frozenset(name for name, kind in kinds.items() if "binary" in kind),
    )


def canonical_rows(rows: StoredSet, name: str | None) -> datasets.Dataset:
    """`rows` as `to_canonical` gives them."""
    if not rows.num_rows:
        raise no_row("the data set")
    found = rows.columns
    layout = FORMATS[name] if name in FORMATS else _recognised(name, found)
    for column in layout.missing(found):
        raise missing_column(column.replace("|", "' or '"), found)
    pictures = layout.picture_columns(found)
    # A column of pictures that the format does not name stays out of meta: it would be read with every row.
    aside = {*pictures, *(rows.binary - (layout.taken() - set(PICTURES)))}
    # Videos are looked at even where they are stored as bytes.
    texts = [column for column in found if column not in aside or column in OTHER_MEDIA]
    read = _read_texts(rows, texts, layout)
    return datasets.concatenate_datasets([rows.pictures(pictures), read], axis=1) if pictures else read


def _recognised(name: str | None, found: list[str]) -> Format:
    if name is not None:
        raise DataError(
            f"there is no data format {name!r}{did_you_mean(name, FORMATS)}; the formats are {list(FORMATS)}. "
            "Name one, or leave it out to have it recognised by the columns"
        )
    for key, layout in FORMATS.items():
        if not layout.missing(found) and layout.picture_columns(found):
            if key != PLAIN:
                logger.warning("The data set is read as %r, recognised by its columns %s.", key, found)
            return layout
    return FORMATS[PLAIN]


def _picture_column(dataset: datasets.Dataset, columns: list[str]) -> datasets.Dataset:
    """The pictures as one column `images`: the stored one itself where there is one."""
    pictures = dataset.select_columns(columns)
    if len(columns) == 1:
        return pictures if columns == [IMAGES] else pictures.rename_column(columns[0], IMAGES)
    for column in columns:
        pictures = pictures.cast_column(column, datasets.Image(decode=False))
    return pictures.map(
        lambda row: {IMAGES: [row[column] for column in columns if row[column] is not None]},
        remove_columns=columns,
        features=datasets.Features({IMAGES: datasets.List(datasets.Image(decode=False))}),
        writer_batch_size=64,  # pictures held at once; the joined column is written to the disk
    )


def _read_texts(source: StoredSet, columns: list[str], layout: Format) -> datasets.Dataset:
    extra = [column for column in columns if column not in {*layout.taken(), *OTHER_MEDIA}]
    rows: list[Row] = []
    meta: list[Row | None] = []
    faults: list[str] = []
    for number, row in with_bar(enumerate(source.texts(columns)), "Reading the rows", rows=source.num_rows):
        try:
            _check_media(row)
            rows.append({**layout.read(row), ID: row.get(layout.id)})
        except RowError as fault:
            faults.append(f"row {number}, {fault}")
        meta.append({column: row[column] for column in extra})
    if faults:
        raise DataError(f"the data set of {quantity(source.num_rows, 'row')} cannot be read:\n{listed(faults)}")
    texts = {name: [row[name] for row in rows] for name in (PROBLEM, ANSWER)}
    texts[ID] = _identifiers([row[ID] for row in rows])
    table = pa.table({name: pa.array(values, pa.string()) for name, values in texts.items()})
    if extra:
        table = table.append_column(META, _records(meta, _DEEPEST))
    return datasets.Dataset(table)


def _check_media(row: Row) -> None:
    """A row has no video and no audio: these are never left out of a prompt without a word."""
    for name in OTHER_MEDIA:
        if row.get(name) not in (None, "", [], {}):
            kind = name.removesuffix("s")
            raise RowError(name, f"holds {kind}; only images are read. Drop the row, or the column if it is unused")


def _identifiers(names: list[Any]) -> list[str]:
    """The names of the rows, and for a row without one its number, told apart from a row that has it as its name."""
    given = {str(name) for name in names if name is not None}
    numbers = [f"row {number}" if str(number) in given else str(number) for number in range(len(names))]
    return [number if name is None else str(name) for name, number in zip(names, numbers, strict=True)]


def _records(values: list[Row | None], levels: int) -> pa.Array:
    """Records of `meta`, each of their fields typed by itself; levels: how deep they may be nested."""
    names = list(dict.fromkeys(name for value in values for name in value or ()))
    fields = [_typed([(value or {}).get(name) for value in values], levels) for name in names]
    return pa.StructArray.from_arrays(fields, names, mask=pa.array([value is None for value in values]))


def _typed(values: list[Any], levels: int) -> pa.Array:
    """A field of `meta`; as text, with other values in JSON, where no one type holds them all."""
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError):
        column = None
    if column is not None and _depth(column.type) <= levels:
        return column
    if levels > 0 and all(value is None or isinstance(value, dict) for value in values):
        return _records(values, levels - 1)
    return pa.array(map(_as_text, values), pa.string())


def _depth(kind: pa.DataType) -> int:
    """How many types there are inside one another."""
    depth, level = 0, [kind]
    while level:
        depth, level = depth + 1, [inner.field(index).type for inner in level for index in range(inner.num_fields)]
    return depth


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def _text(row: Row, field: str) -> str:
    """A text; an empty cell is found by the check of the whole set."""
    value = row[field]
    if value is not None and not isinstance(value, str):
        raise RowError(field, f"is of type {type(value).__name__}, expected text. Write it as text")
    return value or ""


def _answer(value: Any, field: str) -> str:
    """A reference answer as text, without the `\\boxed{}`, the tags or the solution that may be around it."""
    if value is not None and (not isinstance(value, str | int) or isinstance(value, bool)):
        raise RowError(field, f"is of type {type(value).__name__}, expected text or an integer. Write it as text")
    return "" if value is None else unwrapped(str(value))


def _gold(row: Row, *fields: str) -> str:
    """The answer in the first of these columns that has one."""
    for field in fields:
        if row.get(field) is not None:
            return _answer(row[field], field)
    raise RowError(fields[0], f"no answer; expected one in {' or '.join(map(repr, fields))}. Fill it or drop the row")


def _turns(row: Row, field: str) -> Turns:
    """(role, text) of the messages, pictures among their parts as `<image>`."""
    messages = row[field]
    if isinstance(messages, str):
        messages = _stored_messages(messages) or [{"role": USER, "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise RowError(field, "holds no message; expected a list of {role, content}. Fill it or drop the row")
    return [_turn(message, field) for message in messages]


def _stored_messages(text: str) -> list[Any] | None:
    """Messages that came through a column of texts as JSON; None for any other text."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    messages = value if isinstance(value, list) else [value]
    named = all(isinstance(message, dict) and message.keys() & {"role", "from"} for message in messages)
    return messages if messages and named else None


def _turn(message: Any, field: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise RowError(field, f"a message is of type {type(message).__name__}, expected {{role, content}}")
    role = message.get("role") or message.get("from")
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if role not in ROLES:
        raise RowError(field, f"a message has the role {role!r}, expected one of {sorted(ROLES)}")
    if isinstance(content, list):
        content = "".join(_part(part, field) for part in content)
    if not isinstance(content, str):
        raise RowError(field, f"the {role} message has no text; expected a text or a list of parts")
    return ROLES[role], content


def _part(part: Any, field: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind == "image":
        if part.get("image") is not None:
            raise RowError(field, "a picture is inside the message; put it into the column 'images'")
        return "<image>"
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RowError(field, f"a part of a message is a {kind!r} without text, expected 'text' or 'image'")
    return part["text"]


def _question(turns: Turns, field: str) -> str:
    """The one question; a system message goes before it, for a prompt here is one user turn."""
    asked = [text for role, text in turns if role == USER]
    if len(asked) != 1:
        raise RowError(field, f"{quantity(len(asked), 'user turn')}, expected 1. Cut the dialogue to one question")
    if any(role == ASSISTANT for role, _ in turns):
        raise RowError(field, "an assistant turn among what is asked, where a prompt is one user turn. Remove it")
    return "\n\n".join([*(text for role, text in turns if role == SYSTEM and text.strip()), *asked])


def _letter(gold: str, options: Sequence[str], field: str) -> str:
    """`gold` if it is the letter of an option."""
    letters = LETTERS[: len(options)]
    if len(gold) != 1 or gold not in letters:
        raise RowError(
            field, f"{gold[:40]!r} is none of the {quantity(len(options), 'option')} {list(letters)}; correct it"
        )
    return gold


def _with_options(question: str, options: Sequence[str]) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question.rstrip(), *lines])


def _check_number_of_options(options: Sequence[Any], field: str) -> None:
    if not 2 <= len(options) <= len(LETTERS):
        raise RowError(
            field, f"{quantity(len(options), 'option')}, expected 2 to {len(LETTERS)}. Correct it or drop the row"
        )


def read_easyr1(row: Row) -> Row:
    return {PROBLEM: _text(row, PROBLEM), ANSWER: _answer(row[ANSWER], ANSWER)}


def read_question(row: Row) -> Row:
    return {PROBLEM: _text(row, "question"), ANSWER: _answer(row[ANSWER], ANSWER)}


def read_trl(row: Row) -> Row:
    return {PROBLEM: _question(_turns(row, "prompt"), "prompt"), ANSWER: _gold(row, ANSWER, "solution")}


def read_verl(row: Row) -> Row:
    graded = row["reward_model"]
    field = "reward_model.ground_truth"
    if not isinstance(graded, dict) or graded.get("ground_truth") is None:
        raise RowError(field, "missing; expected the answer there. Fill it or drop the row")
    return {
        PROBLEM: _question(_turns(row, "prompt"), "prompt"),
        ANSWER: _answer(graded["ground_truth"], field),
    }


def read_sharegpt(row: Row) -> Row:
    field = "messages" if row.get("messages") is not None else "conversations"
    if row.get(field) is None:
        raise RowError(field, "empty; expected a list of messages. Fill it or drop the row")
    turns = _turns(row, field)
    problem = _question(turns[:-1] if turns[-1][0] == ASSISTANT else turns, field)
    if row.get(ANSWER) is not None or row.get("solution") is not None:
        return {PROBLEM: problem, ANSWER: _gold(row, ANSWER, "solution")}
    if turns[-1][0] != ASSISTANT:
        raise RowError(field, "no assistant turn at the end, which would be the answer; add it or a column 'answer'")
    return {PROBLEM: problem, ANSWER: _answer(turns[-1][1], field)}


def read_mathvista(row: Row) -> Row:
    problem = _text(row, "question")
    answer = _answer(row[ANSWER], ANSWER)
    if row.get("unit"):
        problem += f" (Unit: {row['unit']})"
    if not row["choices"]:
        places = row.get("precision")
        if places and row.get("answer_type") == "float":
            problem += f"\nGive the number with {quantity(int(places), 'decimal place')}."
        return {PROBLEM: problem, ANSWER: answer}
    _check_number_of_options(row["choices"], "choices")
    if answer not in row["choices"]:
        raise RowError(ANSWER, f"{answer[:40]!r} is none of the choices {row['choices']}; correct it or drop the row")
    return {PROBLEM: _with_options(problem, row["choices"]), ANSWER: LETTERS[row["choices"].index(answer)]}


def read_mathverse(row: Row) -> Row:
    answer = _answer(row[ANSWER], ANSWER)
    if row.get("question_type") == "multi-choice" and re.fullmatch(r"[\s()A-J]+", answer):
        answer = ", ".join(re.findall("[A-J]", answer))  # "(C)" and "C\nD" occur
    return {PROBLEM: _text(row, "question") or IN_PICTURE, ANSWER: answer}


def read_wemath(row: Row) -> Row:
    # "A. 3 cm; B. 4 cm": a semicolon may also stand inside an option
    options = re.split(r";\s*(?=[A-J]\.)", _text(row, "option").strip())
    _check_number_of_options(options, "option")
    letters = "".join(option.strip()[:1] for option in options)
    if letters != LETTERS[: len(options)]:
        raise RowError(
            "option", f"the options are lettered {letters!r}, expected {LETTERS[: len(options)]!r}; correct them"
        )
    problem = "\n".join([_text(row, "question").rstrip(), *(option.strip() for option in options)])
    return {PROBLEM: problem, ANSWER: _letter(_answer(row[ANSWER], ANSWER), options, ANSWER)}


def read_mmmu_pro(row: Row) -> Row:
    options = row["options"]
    if isinstance(options, str):
        options = _parsed_options(options)
    _check_number_of_options(options, "options")
    answer = _letter(_answer(row[ANSWER], ANSWER), options, ANSWER)
    if row.get("question") is None:  # the vision setting: question and options are in the picture
        return {PROBLEM: IN_PICTURE, ANSWER: answer}
    return {PROBLEM: _first_marks(_with_options(_text(row, "question"), options)), ANSWER: answer}


def _parsed_options(text: str) -> list[str]:
    try:
        options = ast.literal_eval(text[:_LONGEST_OPTIONS])
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise RowError("options", f"no Python list of texts ({error}); correct it or drop the row") from error
    if not isinstance(options, list):
        raise RowError(
            "options", f"is a {type(options).__name__}, expected a list of texts; correct it or drop the row"
        )
    return [str(option) for option in options]


def _first_marks(text: str) -> str:
    """A picture stands at its first mark; a later mention of it is words."""
    seen: set[str] = set()

    def mention(mark: re.Match[str]) -> str:
        number = mark.group(1)
        if number is None:
            return mark.group()
        again = number in seen
        seen.add(number)
        return f"(image {number})" if again else mark.group()

    return IMAGE_MARK.sub(mention, text)


PLAIN = "easyr1"
ONE_OR_MORE = (IMAGES, "image")

# In the order in which they are tried; a set that fits two is read as the first.
FORMATS = {
    "mathvista": Format(
        ("question", "choices", ANSWER, "question_type", "answer_type"),
        ("decoded_image", "image"),
        read_mathvista,
        id="pid",
        optional=("unit", "precision", "query", "image"),
        kept=("question_type", "answer_type"),
    ),
    "mathverse": Format(
        ("question", ANSWER, "problem_version", "question_type"),
        ("image",),
        read_mathverse,
        id="sample_index",
        kept=("problem_version", "question_type"),
    ),
    "wemath": Format(("question", "option", ANSWER), ("image_path", "image"), read_wemath, id="ID"),
    "mmmu_pro": Format(
        ("options", ANSWER, "subject"),
        ("image", *(f"image_{number}" for number in range(1, 8))),
        read_mmmu_pro,
        optional=("question",),
        kept=("subject",),
    ),
    "logicvista": Format(("question", ANSWER, "skill"), ("image",), read_question, kept=("skill",)),
    "verl": Format(("prompt", "reward_model"), ONE_OR_MORE, read_verl),
    "trl": Format(("prompt", "answer|solution"), ONE_OR_MORE, read_trl),
    "sharegpt": Format(("messages|conversations",), ONE_OR_MORE, read_sharegpt, optional=(ANSWER, "solution")),
    PLAIN: Format((PROBLEM, ANSWER), ONE_OR_MORE, read_easyr1),
    "question": Format(("question", ANSWER), ONE_OR_MORE, read_question),
}

# Every column in which a format keeps pictures.
PICTURES = tuple(dict.fromkeys(name for layout in FORMATS.values() for name in layout.images))
