"""The supported row formats: how each is recognised, and how its problem and answer are read.

A reader gets the texts of a row and never its images, which stay where they are stored.
"""

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vgpo.answers import choice_letter
from vgpo.data.schema import ANSWER, ID, IMAGE_MARK, IMAGES, PROBLEM, quantity
from vgpo.options import LETTERS, lettered_options
from vgpo.references import unwrapped

Row = dict[str, Any]
Turns = list[tuple[str, str]]

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = {"human": USER, USER: USER, "gpt": ASSISTANT, ASSISTANT: ASSISTANT, SYSTEM: SYSTEM}
QUESTION_IN_IMAGE = "Answer the question in the picture."

QUESTIONS = ("question", PROBLEM, "annotat_text", "problem_text")
ANSWERS = (ANSWER, "ground_truth", "solution")
OPTIONS = ("options", "choices")
DECIMAL_PLACES = range(21)

_LONGEST_OPTIONS = 20_000  # characters of an option list that are parsed
_SOME_LETTERS = re.compile(r"[\s()A-L]+")


class RowError(ValueError):
    """A fault of a row: the field, the complaint and the fix."""

    def __init__(self, field: str, complaint: str) -> None:
        super().__init__(f"field {field!r}: {complaint}")


@dataclass(frozen=True)
class Format:
    """One way to write a row.

    columns: columns that the reader takes and by which the format is recognised; "a|b" is either. images: image
    columns in order of preference, or all of them if they are numbered. read: texts of a row to problem and answer.
    id: columns whose values name the row, joined by a slash. optional: read if present.
    kept: those of the columns that are also stored in `meta`; columns not named here always are.
    """

    columns: tuple[str, ...]
    images: tuple[str, ...]
    read: Callable[[Row], Row]
    id: tuple[str, ...] = (ID,)
    optional: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def missing(self, found: Sequence[str]) -> list[str]:
        """The required columns that are not in `found`."""
        return [name for name in self.columns if not set(name.split("|")) & set(found)]

    def image_columns(self, found: Sequence[str]) -> list[str]:
        there = [name for name in self.images if name in found]
        return there if all(name[-1].isdigit() for name in there) else there[:1]

    def name(self, row: Row) -> str | None:
        """The name of a row, from the id columns that have a value; None if none has."""
        parts = [str(row[column]) for column in self.id if row.get(column) is not None]
        return "/".join(parts) or None

    def taken(self) -> set[str]:
        """The columns that become problem, answer and id, and are not stored in `meta`."""
        parts = {part for name in (*self.columns, *self.optional, *self.id) for part in name.split("|")}
        return parts - set(self.kept)


def _text(row: Row, field: str) -> str:
    """A text; the check of the dataset finds empty cells."""
    value = row[field]
    if value is not None and not isinstance(value, str):
        raise RowError(field, f"is of type {type(value).__name__}, expected text. Write it as text")
    return value or ""


def _answer(value: Any, field: str) -> str:
    """A reference answer as text, without a surrounding `\\boxed{}`, tags or solution."""
    if value is not None and (not isinstance(value, str | int) or isinstance(value, bool)):
        raise RowError(field, f"is of type {type(value).__name__}, expected text or an integer. Write it as text")
    return "" if value is None else unwrapped(str(value))


def _reference(row: Row, *fields: str) -> str:
    """The answer from the first of these columns that has one."""
    for field in fields:
        if row.get(field) is not None:
            return _answer(row[field], field)
    there = [field for field in fields if field in row]
    names = " or ".join(map(repr, there or fields))
    raise RowError((there or fields)[0], f"empty; expected a checkable answer in {names}. Fill it or drop the row")


def _turns(row: Row, field: str) -> Turns:
    """(role, text) of the messages, images among their parts as `<image>`."""
    messages = row[field]
    if isinstance(messages, str):
        messages = _stored_messages(messages) or [{"role": USER, "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise RowError(field, "holds no message; expected a list of {role, content}. Fill it or drop the row")
    return [_turn(message, field) for message in messages]


def _stored_messages(text: str) -> list[Any] | None:
    """Messages stored as JSON in a text column; None for any other text."""
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
            raise RowError(field, "an image is inside the message; put it into the column 'images'")
        return "<image>"
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RowError(field, f"a part of a message is a {kind!r} without text, expected 'text' or 'image'")
    return part["text"]


def _question(turns: Turns, field: str) -> str:
    """The single question. A system message is put before it, because a prompt is one user turn here."""
    asked = [text for role, text in turns if role == USER]
    if len(asked) != 1:
        raise RowError(field, f"{quantity(len(asked), 'user turn')}, expected 1. Shorten the dialogue to one question")
    if any(role == ASSISTANT for role, _ in turns):
        raise RowError(field, "an assistant turn within the question; a prompt is one user turn. Remove it")
    return "\n\n".join([*(text for role, text in turns if role == SYSTEM and text.strip()), *asked])


def _letter(reference: str, options: Sequence[str], field: str) -> str:
    """The letter in `reference`, or the letter of the option with the same text."""
    letters = LETTERS[: len(options)]
    letter = choice_letter(reference)
    if letter is None and reference in options:
        letter = letters[options.index(reference)]
    if letter is None or letter not in letters:
        raise RowError(
            field,
            f"{reference[:40]!r} is not one of the {quantity(len(options), 'option')} {list(letters)}; correct it",
        )
    return letter


def _with_options(question: str, options: Sequence[str]) -> str:
    """The question and a line per option; without these lines if options are only letters, shown in the image."""
    if list(options) == list(LETTERS[: len(options)]):
        return question
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question.rstrip(), *lines])


def _check_number_of_options(options: Sequence[Any], field: str) -> None:
    if not 2 <= len(options) <= len(LETTERS):
        raise RowError(
            field, f"{quantity(len(options), 'option')}, expected 2 to {len(LETTERS)}. Correct it or drop the row"
        )


def read_easyr1(row: Row) -> Row:
    return {PROBLEM: _text(row, PROBLEM), ANSWER: _reference(row, *ANSWERS)}


def read_question(row: Row) -> Row:
    return {PROBLEM: _text(row, "question"), ANSWER: _reference(row, *ANSWERS)}


def read_options(row: Row) -> Row:
    """A question whose options are a list of texts; without options it is a free-form question."""
    question = next((name for name in QUESTIONS if row.get(name) is not None), QUESTIONS[0])
    field = next((name for name in OPTIONS if row.get(name) is not None), OPTIONS[0])
    options = _options(row.get(field), field)
    answer = _reference(row, *ANSWERS)
    if not options:
        return {PROBLEM: _text(row, question), ANSWER: answer}
    _check_number_of_options(options, field)
    problem = _first_marks(_with_options(_text(row, question), options))
    return {PROBLEM: problem, ANSWER: _letter(answer, options, ANSWER)}


def read_geometry3k_open(row: Row) -> Row:
    """A question without its options, whose answer is the text of the correct one."""
    question = next(name for name in QUESTIONS if row.get(name) is not None)
    options = _options(row["choices"], "choices")
    letter = _letter(_reference(row, ANSWER), options, ANSWER)
    return {PROBLEM: _text(row, question), ANSWER: options[LETTERS.index(letter)]}


def read_mathvision(row: Row) -> Row:
    # Everything that the marks refer to is in one image.
    read = read_options(row)
    return {**read, PROBLEM: _one_mark(read[PROBLEM])}


def read_trl(row: Row) -> Row:
    return {PROBLEM: _question(_turns(row, "prompt"), "prompt"), ANSWER: _reference(row, ANSWER, "solution")}


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
        return {PROBLEM: problem, ANSWER: _reference(row, ANSWER, "solution")}
    if turns[-1][0] != ASSISTANT:
        raise RowError(field, "no assistant turn at the end, which would be the answer; add it or a column 'answer'")
    return {PROBLEM: problem, ANSWER: _answer(turns[-1][1], field)}


def read_mathvista(row: Row) -> Row:
    problem = _text(row, "question")
    answer = _answer(row[ANSWER], ANSWER)
    unit = row.get("unit")
    if isinstance(unit, str) and unit:  # NaN is pandas' null
        problem += f" (Unit: {unit})"
    if not row["choices"]:
        places = decimal_places(row.get("precision"))
        if places and row.get("answer_type") == "float":
            problem += f"\nGive the number with {quantity(places, 'decimal place')}."
        return {PROBLEM: problem, ANSWER: answer}
    _check_number_of_options(row["choices"], "choices")
    if answer not in row["choices"]:
        raise RowError(
            ANSWER, f"{answer[:40]!r} is not one of the choices {row['choices']}; correct it or drop the row"
        )
    return {PROBLEM: _with_options(problem, row["choices"]), ANSWER: LETTERS[row["choices"].index(answer)]}


def decimal_places(value: Any) -> int | None:
    """Decimal places to which numbers are rounded: an integer from 0 to 20; None if `value` is anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and value in DECIMAL_PLACES else None


def read_mathverse(row: Row) -> Row:
    question, answer = _text(row, "question"), _answer(row[ANSWER], ANSWER)
    if row.get("question_type") == "multi-choice":
        answer = _choices_of_mathverse(question, answer)
    return {PROBLEM: question or QUESTION_IN_IMAGE, ANSWER: answer}


def _choices_of_mathverse(question: str, answer: str) -> str:
    """A reference answer such as `(C)` or `C\\nD`, or the text of an option, as letters."""
    if _SOME_LETTERS.fullmatch(answer):
        return ", ".join(re.findall("[A-L]", answer))
    letters = {text: letter for letter, text in lettered_options(question).items()}
    return letters.get(answer, answer)


def read_wemath(row: Row) -> Row:
    options, answer = _text(row, "option").strip(), _answer(row[ANSWER], ANSWER)
    # "A. 3 cm; B. 4 cm": an option may also contain a semicolon
    parts = [part.strip() for part in re.split(r";\s*(?=[A-L][.．])", options)]
    letters = "".join(part[:1] for part in parts)
    if letters != LETTERS[: len(parts)]:
        parts = [options]  # other lettering, such as "A. 45° B. 60° ;C. 75°": shown as written
        letters = "".join(re.findall(r"(?<![A-Za-z])[A-L](?=\s*[.．、:;])", options))
    if len(answer) != 1 or answer not in letters:
        raise RowError(
            ANSWER, f"{answer[:40]!r} is not one of the options {list(letters)}; correct it or drop the row"
        )
    return {PROBLEM: "\n".join([_text(row, "question").rstrip(), *parts]), ANSWER: answer}


def read_mmmu_pro(row: Row) -> Row:
    options = _options(row["options"], "options")
    _check_number_of_options(options, "options")
    answer = _letter(_answer(row[ANSWER], ANSWER), options, ANSWER)
    if row.get("question") is None:  # the vision setting: question and options are in the image
        return {PROBLEM: QUESTION_IN_IMAGE, ANSWER: answer}
    return {PROBLEM: _first_marks(_with_options(_text(row, "question"), options)), ANSWER: answer}


def _options(value: Any, field: str) -> list[str]:
    """Options as a list of texts, also given as the text of such a list, or nested in another list."""
    options = _parsed_options(value, field) if isinstance(value, str) and value.strip() else value or []
    if not isinstance(options, list):
        raise RowError(field, f"is of type {type(options).__name__}, expected a list of texts; correct it")
    if len(options) == 1 and isinstance(options[0], list):
        options = options[0]
    return [str(option) for option in options]


def _parsed_options(text: str, field: str) -> Any:
    try:
        return ast.literal_eval(text[:_LONGEST_OPTIONS])
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise RowError(field, f"not a Python list of texts ({error}); correct it or drop the row") from error


def _one_mark(text: str) -> str:
    """A single mark is the position of the image; several refer to its parts, and the image is put first."""
    if len(IMAGE_MARK.findall(text)) < 2:
        return text
    return IMAGE_MARK.sub(lambda mark: f"(image {mark.group(1)})" if mark.group(1) else "(image)", text)


def _first_marks(text: str) -> str:
    """An image is placed at its first mark; later marks become text."""
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
ONE_OR_MORE = (IMAGES, "decoded_image", "image", "image_path", "imagename")
NUMBERED = tuple(f"image_{number}" for number in range(1, 8))
ANY_ANSWER = "|".join(ANSWERS)
FURTHER_ANSWERS = ANSWERS[1:]

# In the order in which they are tried; a dataset that matches two formats is read as the first.
FORMATS = {
    "mathvista": Format(
        ("question", "choices", ANSWER, "question_type", "answer_type"),
        ("decoded_image", "image"),
        read_mathvista,
        id=("pid",),
        optional=("unit", "precision", "query", "image"),
        kept=("question_type", "answer_type", "precision"),
    ),
    "mathverse": Format(
        ("question", ANSWER, "problem_version", "question_type"),
        ("image",),
        read_mathverse,
        id=("sample_index",),
        kept=("problem_version", "question_type"),
    ),
    "mathvision": Format(
        ("question", "options", ANSWER, "level", "subject"),
        ("decoded_image", "image"),
        read_mathvision,
        kept=("level", "subject"),
    ),
    "wemath": Format(
        ("question", "option", ANSWER),
        ("image_path", "image"),
        read_wemath,
        id=("ID", "key"),  # ID names a problem of several steps, each of which is a row
        kept=("ID", "key"),
    ),
    "mmmu_pro": Format(
        ("options", ANSWER, "subject"),
        ("image", *NUMBERED),
        read_mmmu_pro,
        optional=("question",),
        kept=("subject",),
    ),
    "geometry3k": Format(("annotat_text|problem_text", "choices", ANSWER), ONE_OR_MORE, read_options),
    "geometry3k_open": Format(("annotat_text|problem_text", "choices", ANSWER), ONE_OR_MORE, read_geometry3k_open),
    "logicvista": Format(("question", ANSWER, "skill"), ONE_OR_MORE, read_question, kept=("skill",)),
    "verl": Format(("prompt", "reward_model"), ONE_OR_MORE, read_verl),
    "trl": Format(("prompt", "answer|solution"), ONE_OR_MORE, read_trl),
    "sharegpt": Format(("messages|conversations",), ONE_OR_MORE, read_sharegpt, optional=(ANSWER, "solution")),
    PLAIN: Format((PROBLEM, ANY_ANSWER), ONE_OR_MORE, read_easyr1, kept=FURTHER_ANSWERS),
    "question": Format(("question", ANY_ANSWER), ONE_OR_MORE, read_question, kept=FURTHER_ANSWERS),
    "options": Format(
        ("|".join(QUESTIONS), "|".join(OPTIONS), ANY_ANSWER),
        (*ONE_OR_MORE, *NUMBERED),
        read_options,
        kept=FURTHER_ANSWERS,
    ),
}

# Every column in which a format keeps images.
FORMAT_IMAGE_COLUMNS = tuple(dict.fromkeys(name for layout in FORMATS.values() for name in layout.images))
# Every column that a format knows, and to which another column can be mapped.
COLUMNS = sorted({*FORMAT_IMAGE_COLUMNS, *(name for layout in FORMATS.values() for name in layout.taken())})
