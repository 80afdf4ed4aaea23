"""What the scorers accept, and that they grade a batch once, row by row, whatever is in it."""

import importlib.util
import time
from typing import Any

import pytest

from vgpo.evaluation.answers import Answer, Question
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.protocols import PROTOCOLS, Protocol, protocol_named
from vgpo.evaluation.scorers import LENIENT, PAPO, SCORERS, check_scorer, grade_answers
from vgpo.rewards import Grader, default_grader

COLOURS = {"A": "red", "B": "dark blue", "C": "$\\frac{1}{2}$", "D": "2 cm"}
SHARES = {"A": "0.5", "B": "\\frac{1}{2}", "C": "\\frac{3}{4}", "D": "\\frac{6}{8}"}
TWINS = {"A": "12", "B": "30", "C": "30"}


def question(answer: str, row: int = 0, **fields: Any) -> Question:
    return Question(row=row, id=str(row), problem="Which?", answer=answer, **fields)


def respond(text: str | None, row: int = 0, sample: int = 0) -> Answer:
    completion = "I cannot tell." if text is None else rf"So it is \boxed{{{text}}}."
    return Answer(row=row, sample=sample, completion=completion, truncated=False)


def verdicts(scorer: str, pairs: list[tuple[Question, str | None]]) -> list[bool]:
    questions = [asked.model_copy(update={"row": row}) for row, (asked, _) in enumerate(pairs)]
    answers = [respond(text, row) for row, (_, text) in enumerate(pairs)]
    return [graded.correct for graded in grade_answers(scorer, questions, answers)]


# reference answer, content of the box, verdict of papo, verdict of lenient
FREE = [
    ("12", "12", True, True),
    ("12", "13", False, False),
    ("12", "12.0", True, True),
    ("1/2", "1 / 2", True, True),
    ("x<3", "x <\t3", True, True),  # mathruler leaves tabs where they are
    ("1/2", "2/4", False, True),  # mathruler asks for reduced fractions
    ("\\frac{3}{4}", "0.75", True, True),
    ("6\\sqrt{2}", "\\sqrt{72}", True, True),
    ("300", "300 \\mathrm{~cm}^{2}", False, True),
    ("7mm", "7", False, True),
    ("6", "S_{\\triangle DEF}=6", False, True),
    ("6.4", "CF = 6.4", False, True),
    ("50°", "50", False, True),
    ("√{7}", "\\sqrt{7}", False, True),
    ("45π", "45\\pi", False, True),
    ("\\frac{5}{2}√{3}", "2.5", False, False),
    ("7", "7:45", False, False),
    ("None", "None", True, True),
    ("left", "felt", False, False),
    ("[3, 5]", "3, 5", False, True),
    ("[3, 5]", "3 and 5", False, True),
    ("[3, 5]", "[3,5]", True, True),
    ("[3, 5]", "5, 3", False, False),
]

# The same with options.
CHOICES = [
    ("B", COLOURS, "B", True, True),
    ("B", COLOURS, "(B)", True, True),
    ("B", COLOURS, "\\text{B}", True, True),
    ("B", COLOURS, "A", False, False),
    ("B", COLOURS, "\\textbf{(B)}~5", False, True),
    ("B", COLOURS, "B. dark blue", False, True),
    ("B", COLOURS, "(B) red", False, True),  # letter first: the text is A's
    ("A", COLOURS, "(B) red", False, False),
    ("B", COLOURS, "Dark Blue", False, True),
    ("B", COLOURS, "\\text{dark blue}", False, True),
    ("B", COLOURS, "blue", False, False),
    ("A", COLOURS, "dark blue", False, False),
    ("C", COLOURS, "\\frac12", False, True),
    ("C", COLOURS, "0.5", False, True),
    ("D", COLOURS, "2", False, True),
    ("D", COLOURS, "2 m", False, False),
    ("B", COLOURS, "red or dark blue", False, False),
    ("A", SHARES, "0.5", False, True),
    ("B", SHARES, "0.5", False, False),  # word for word the text of A
    ("A", SHARES, "0.50", False, False),  # the text of A and of B
    ("C", SHARES, "\\frac{3}{4}", False, True),
    ("C", SHARES, "0.75", False, False),
    ("B", TWINS, "30", False, True),
    ("B", TWINS, "C", False, True),  # the same option twice
    ("C", TWINS, "B", False, True),
    ("A", TWINS, "B", False, False),
    ("dark blue", COLOURS, "B", False, True),  # a reference answer that is an option's text
    ("dark blue", COLOURS, "dark blue", True, True),
    ("dark blue", COLOURS, "A", False, False),
    ("A, C", {}, "C and A", False, True),
    ("A, C", {}, "A, C", True, True),
    ("A, C", {}, "A", False, False),
    ("A, C", COLOURS, "(A), (C)", False, True),
    ("E", COLOURS, "E", True, True),  # a letter that is not one of the options that were read
    ("E", COLOURS, "dark blue", False, False),
    ("E", COLOURS, "green", False, False),
    ("A", {"A": "B", "B": "A"}, "A", True, True),  # letter first: the text is B's
    ("A", {"A": "B", "B": "A"}, "B", False, False),
]


@pytest.fixture(scope="module")
def free() -> dict[str, list[bool]]:
    pairs = [(question(reference), text) for reference, text, *_ in FREE]
    return {scorer: verdicts(scorer, pairs) for scorer in (PAPO, LENIENT)}


@pytest.fixture(scope="module")
def choices() -> dict[str, list[bool]]:
    pairs = [(question(reference, options=options), text) for reference, options, text, *_ in CHOICES]
    return {scorer: verdicts(scorer, pairs) for scorer in (PAPO, LENIENT)}


@pytest.mark.parametrize("number", range(len(FREE)), ids=[f"{case[0]} | {case[1]}" for case in FREE])
def test_free_answers(free: dict[str, list[bool]], number: int) -> None:
    assert (free[PAPO][number], free[LENIENT][number]) == FREE[number][2:]


@pytest.mark.parametrize("number", range(len(CHOICES)), ids=[f"{case[0]} | {case[2]}" for case in CHOICES])
def test_choices(choices: dict[str, list[bool]], number: int) -> None:
    assert (choices[PAPO][number], choices[LENIENT][number]) == CHOICES[number][3:]


@pytest.mark.parametrize(
    ("text", "precision", "expected"),
    [
        ("0.214", 2, True),
        ("0.2149 cm", 2, True),
        ("x = 0.206", 2, True),
        ("0.215", 2, True),  # a tie, in either direction
        ("0.205", 2, True),
        ("0.2151", 2, False),
        ("0.2", 2, False),
        ("0.214", None, False),
        ("0.23", 1, True),
        ("1e999999", 2, False),
        ("a lot", 2, False),
    ],
)
def test_a_number_may_round_to_the_reference_answer(text: str, precision: int | None, expected: bool) -> None:
    reference = "0.2" if precision == 1 else "0.21"
    assert verdicts(LENIENT, [(question(reference, precision=precision), text)]) == [expected]
    assert verdicts(PAPO, [(question(reference, precision=precision), text)]) == [False]


@pytest.mark.parametrize("scorer", [PAPO, LENIENT])
def test_a_response_without_a_box_is_wrong_whatever_the_reference_answer(scorer: str) -> None:
    questions = [question("None"), question("E", 1), question("", 2), question("None", 3)]
    answers = [respond(None, 0), respond(None, 1), Answer(row=3, sample=0, completion="\\boxed{}", truncated=True)]
    graded = grade_answers(scorer, questions, answers)
    assert [one.correct for one in graded] == [False] * 3
    assert [one.predicted for one in graded] == [None, None, ""]
    assert graded[2].truncated


def test_the_last_box_counts() -> None:
    answer = Answer(row=0, sample=0, completion="\\boxed{7} no, \\boxed{8}", truncated=False)
    assert [one.correct for one in grade_answers(PAPO, [question("7")], [answer])] == [False]
    assert [one.predicted for one in grade_answers(PAPO, [question("8")], [answer])] == ["8"]


def test_answers_keep_their_order_and_their_questions() -> None:
    questions = [question("7", 4), question("8", 9)]
    answers = [respond("8", 9, 1), respond("7", 4), respond("8", 4, 1), respond("7", 9)]
    graded = grade_answers(PAPO, questions, answers)
    assert [(one.row, one.sample, one.question.answer) for one in graded] == [
        (9, 1, "8"), (4, 0, "7"), (4, 1, "7"), (9, 0, "8"),
    ]  # fmt: skip
    assert [one.correct for one in graded] == [True, True, False, False]


@pytest.mark.parametrize(("scorer", "batches"), [(PAPO, 1), (LENIENT, 2)])
def test_equal_answers_are_graded_once_and_in_one_batch(
    scorer: str, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[str, str]]] = []
    check_all = Grader._check_all

    def spy(grader: Grader, pairs: Any, *arguments: Any) -> Any:
        seen.append(list(pairs))
        return check_all(grader, pairs, *arguments)

    def spied(grader: Grader, pairs: Any, refuse: Any = None) -> Any:
        return spy(grader, pairs, refuse)

    monkeypatch.setattr(Grader, "_check_all", spied)
    questions = [question("2\\sqrt{3}", row) for row in range(3)]
    answers = [respond("\\sqrt{12}", row, sample) for row in range(3) for sample in range(4)]
    assert all(graded.correct for graded in grade_answers(scorer, questions, answers))
    assert len(seen) == batches
    assert [pairs for pairs in seen if pairs] == [[("\\sqrt{12}", "2\\sqrt{3}")]]


def test_equal_answers_to_a_question_reach_the_scorer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str]] = []

    def scorer(questions: list[Question], boxes: list[str]) -> list[bool]:
        seen.extend(zip([asked.row for asked in questions], boxes, strict=True))
        return [True] * len(boxes)

    monkeypatch.setitem(SCORERS, PAPO, scorer)
    answers = [respond("7", row, sample) for row in (0, 1) for sample in (0, 1)]
    assert len(grade_answers(PAPO, [question("7"), question("7", 1)], answers)) == 4
    assert seen == [(0, "7"), (1, "7")]


def test_a_hanging_and_a_hostile_answer_cost_no_more_than_their_verdict() -> None:
    texts = ["9**9**9**9", "999999999!", "__import__('os').getpid()", "1" * 5000, "\\frac{" * 2000]
    pairs = [(question(reference), text) for reference in ("0.5", "[3, 5]") for text in texts]
    for scorer in (PAPO, LENIENT):
        assert verdicts(scorer, [*pairs, (question("0.5"), "0.5")]) == [False] * len(pairs) + [True]


@pytest.mark.parametrize("scorer", [PAPO, LENIENT])
def test_boxes_are_read_in_linear_time(scorer: str) -> None:
    texts = [text * 100_000 for text in (" ", "< ", ",", "[,", "A ", "(A)", "$")]
    references = [question(reference, options=COLOURS, precision=2) for reference in ("B", "[3, 5]")]
    pairs = [(reference, text) for reference in references for text in texts]
    start = time.perf_counter()
    assert verdicts(scorer, pairs) == [False] * len(pairs)
    assert time.perf_counter() - start < 30


def test_mathruler_alone_sees_both_texts_as_they_are() -> None:
    grader = default_grader()
    pairs = {("B. 12", "B"): False, ("don't", "don't"): True, ("x" * 2000, "x" * 2000): True, ("", "a"): False}
    pairs |= {("\\text{don't}", "don't"): True, ("A", "a"): True, ("x" * 1001, "y"): False}
    assert grader.grade_verbatim(*map(list, zip(*pairs, strict=True))) == list(pairs.values())
    with pytest.raises(ValueError, match="2 predictions but 1 reference answers"):
        grader.grade_verbatim(["1", "2"], ["1"])


def test_an_answer_to_another_row_is_refused() -> None:
    message = "there is an answer to row 5, which is not one of the 1 questions; the answers are of other data"
    with pytest.raises(EvaluationError, match=message):
        grade_answers(PAPO, [question("7")], [respond("7", 5)])


def test_an_unknown_scorer_is_refused_with_the_nearest() -> None:
    with pytest.raises(EvaluationError, match=r"there is no scorer 'lenent' \(did you mean 'lenient'\?\)"):
        check_scorer("lenent")


def test_lenient_without_math_verify_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgpo.evaluation.scorers.lenient_grader", lambda: Grader(fallback_verifier="math-verify"))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "math_verify" else find_spec(name))
    for use in (lambda: check_scorer(LENIENT), lambda: grade_answers(LENIENT, [question("7")], [respond("7")])):
        with pytest.raises(ImportError, match=r"pip install 'vgpo\[math-verify\]'"):
            use()
    check_scorer(PAPO)


def test_no_answers_are_no_verdicts() -> None:
    for scorer in (PAPO, LENIENT):
        assert grade_answers(scorer, [question("7")], []) == []


def test_protocols_by_their_names() -> None:
    assert {name: protocol_named(name) for name in PROTOCOLS} == PROTOCOLS
    assert protocol_named("papo-greedy") == Protocol("papo-greedy", PAPO, 1, 0.0)
    assert protocol_named("lenient") == Protocol("lenient", LENIENT, 1, 0.0)
    assert protocol_named("papo-avg@8") == Protocol("papo-avg@8", PAPO, 8, 1.0)
    assert protocol_named("lenient-avg@16") == Protocol("lenient-avg@16", LENIENT, 16, 1.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("papo", r"there is no protocol 'papo'.*; the protocols are"),
        ("lenient-greedy", r"there is no protocol 'lenient-greedy' \(did you mean 'lenient-avg@8'\?\)"),
        ("papo-avg@1", "has 1 samples per question, expected 2 to 1024; for one greedy answer name 'papo-greedy'"),
        ("papo-avg@0", "has 0 samples per question"),
        ("papo-avg@99999", "has 99999 samples per question"),
        ("papo-avg@eight", "there is no protocol"),
        ("papo-avg@08x", "there is no protocol"),
    ],
)
def test_an_unknown_protocol_is_refused(name: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        protocol_named(name)
