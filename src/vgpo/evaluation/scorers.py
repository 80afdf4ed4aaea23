"""Scorers: decide whether an answer to a benchmark question is correct, by the rules of a protocol.

The content of the last box of a response is graded. A response without a box is always wrong: the text "None", which
mathruler's own extraction returns for it, never equals a reference answer here.

`papo` is PAPO-Eval's: mathruler on the unchanged reference answer, after removing blanks around `<`, `>` and `/`.

`lenient` accepts what `vgpo.rewards.lenient_accuracy_reward` accepts (letters and text rules, mathruler, math-verify),
a number that rounds to the reference answer at the benchmark's decimal places (at a tie in either direction), and a
list without the brackets of the reference answer. If the reference answer is an option of the question, as letter or
text, the answer is read as an option: by its letter, whatever text follows, else by its text if it equals exactly one
option. Options with the same text are treated as one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from vgpo.answers import answered_letter, choice_letter, extract_boxed, normal_text, number_distance
from vgpo.evaluation.answers import Answer, GradedAnswer, Question
from vgpo.evaluation.errors import EvaluationError
from vgpo.rewards import default_grader, lenient_grader
from vgpo.text import did_you_mean

PAPO, LENIENT = "papo", "lenient"

_SIGNS = re.compile(r"([<>/])")


@dataclass(frozen=True)
class Boxed:
    """The content of the last box of a response to a question; equal ones are graded once."""

    row: int
    text: str


def check_scorer(scorer: str) -> None:
    """Raise the errors of `grade_answers` for an unusable scorer, before anything is generated.

    Raises:
        EvaluationError: An unknown scorer.
        ImportError: `lenient` without math-verify; the message names the extra that installs it.
    """
    if scorer not in SCORERS:
        raise EvaluationError(
            f"there is no scorer {scorer!r}{did_you_mean(scorer, SCORERS)}; the scorers are {[*SCORERS]}"
        )
    if scorer == LENIENT:
        lenient_grader()


def grade_answers(scorer: str, questions: Sequence[Question], answers: Sequence[Answer]) -> list[GradedAnswer]:
    """Grade responses in one batch; equal answers to a question are graded once.

    Args:
        scorer: A key of `SCORERS`.
        questions: The questions, each row once.
        answers: Responses to them, any number and in any order.

    Returns:
        In the order of `answers`.

    Raises:
        EvaluationError: As in `check_scorer`, or a response to a row that was not asked.
        ImportError: As in `check_scorer`.
    """
    check_scorer(scorer)
    asked = {question.row: question for question in questions}
    for answer in answers:
        if answer.row not in asked:
            raise EvaluationError(
                f"there is an answer to row {answer.row}, which is not one of the {len(asked)} questions; the answers "
                "are of other data; evaluate them with the data from which they were generated"
            )
    texts = [extract_boxed(answer.completion) for answer in answers]
    boxed = [Boxed(answer.row, text) for answer, text in zip(answers, texts, strict=True) if text]
    distinct = list(dict.fromkeys(boxed))
    found = SCORERS[scorer]([asked[box.row] for box in distinct], [box.text for box in distinct])
    verdicts = dict(zip(distinct, found, strict=True))
    return [
        GradedAnswer(
            **vars(answer),
            question=asked[answer.row],
            predicted=text,
            correct=bool(text) and verdicts[Boxed(answer.row, text or "")],
        )
        for answer, text in zip(answers, texts, strict=True)
    ]


def papo_verdicts(questions: Sequence[Question], boxes: Sequence[str]) -> list[bool]:
    """The verdicts of `papo` on the boxes (not empty), one per question."""
    answers = ["".join(part.strip() for part in _SIGNS.split(box)) for box in boxes]
    return default_grader().grade_verbatim(answers, [question.answer for question in questions])


def lenient_verdicts(questions: Sequence[Question], boxes: Sequence[str]) -> list[bool]:
    """The verdicts of `lenient` on the boxes (not empty), one per question."""
    asked = list(zip(questions, boxes, strict=True))
    verdicts = [verdict_by_text(question, box) for question, box in asked]
    undecided = [index for index, verdict in enumerate(verdicts) if verdict is None]
    equal = _are_equal([(asked[index][1], right_text(asked[index][0])) for index in undecided])
    right = [index for index, same in zip(undecided, equal, strict=True) if same]
    # A text may equal the correct option and another one, such as 0.5 and 1/2; then it is ambiguous and matches
    # neither.
    others = {index: other_texts(asked[index][0]) for index in right}
    found = iter(_are_equal([(asked[index][1], text) for index in right for text in others[index]]))
    several = {index for index in right if sum(next(found) for _ in others[index])}
    return [bool(verdict) or (index in others and index not in several) for index, verdict in enumerate(verdicts)]


def verdict_by_text(question: Question, box: str) -> bool | None:
    """The verdict if the box has a letter, the exact text of an option, or a number that rounds; else None."""
    right = reference_letter(question)
    if right is None:
        return _rounds_to_reference(question, box) or None
    letter = answered_letter(box) or _letter_of_text(question, box)
    return None if letter is None else _text_of(question, letter) == _text_of(question, right)


def reference_letter(question: Question) -> str | None:
    """The letter of the correct option, also if the reference answer is its text; None if it is not an option."""
    letter = choice_letter(question.answer)
    if letter is not None:
        return letter if letter in question.options else None
    return _letter_of_text(question, question.answer)


def right_text(question: Question) -> str:
    """The text that an answer without a letter must equal: that of the correct option, or the reference answer."""
    right = reference_letter(question)
    return question.answer if right is None else question.options[right]


def other_texts(question: Question) -> list[str]:
    """The texts of options that differ from the correct one; empty without options."""
    right = reference_letter(question)
    if right is None:
        return []
    expected = normal_text(question.options[right])
    return [text for text in question.options.values() if normal_text(text) != expected]


def _are_equal(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether the grader finds each box equal to a text."""
    boxes = [_as_listed(box, text) for box, text in pairs]
    return lenient_grader().grade_boxed(boxes, [text for _, text in pairs])


def _letter_of_text(question: Question, text: str) -> str | None:
    """The first option with exactly this text."""
    expected = normal_text(text)
    return next((letter for letter in question.options if _text_of(question, letter) == expected), None)


def _text_of(question: Question, letter: str) -> str | None:
    text = question.options.get(letter)
    return None if text is None else normal_text(text)


def _rounds_to_reference(question: Question, box: str) -> bool:
    if question.precision is None:
        return False
    distance = number_distance(box, question.answer)
    return distance is not None and distance <= Decimal(5).scaleb(-question.precision - 1)


def _as_listed(box: str, reference: str) -> str:
    """`box` in brackets if it is a list without them, such as `3, 5` or `3 and 5`, and the reference answer has
    them."""
    listed = f"[{box.replace(' and ', ', ')}]"
    return listed if _is_list(reference.strip()) and _is_list(listed) else box


def _is_list(text: str) -> bool:
    return text[:1] == "[" and text[-1:] == "]" and "," in text and not {"[", "]"} & set(text[1:-1])


SCORERS: dict[str, Callable[[Sequence[Question], Sequence[str]], list[bool]]] = {
    PAPO: papo_verdicts,
    LENIENT: lenient_verdicts,
}
