"""What counts as right, as a table: mathruler alone, our grader, and our grader with math-verify's second opinion."""

import importlib.util
from collections.abc import Iterator

import pytest
from mathruler.grader import grade_answer

from vgpo.answers import compare_text, is_words
from vgpo.rewards import Grader

HAS_MATH_VERIFY = importlib.util.find_spec("math_verify") is not None

SYSTEM = r"\left\{\begin{array}{l}x=1\\y=2\end{array}\right."  # an escaped brace that nothing closes

# reference answer, answer in the box, mathruler, ours, ours with math-verify
BEHAVIOUR = [
    # one letter: the strict path; mathruler's reading but for two forms that name the letter plainly
    ("A", "A", True, True, True),
    ("A", "(A)", True, True, True),
    ("A", r"\text{A}", True, True, True),
    ("A", r"\textbf{A}", True, True, True),
    ("A", "a", True, True, True),
    ("A", "A.", False, True, True),
    ("A", "A. 12", False, True, True),
    ("A", "A)", False, True, True),
    ("A", "(A) 12", False, True, True),
    ("A", "A. 3 B. 4", False, False, False),
    ("A.", "(A)", False, True, True),
    ("(A)", "A. 12", False, True, True),
    (r"\text{A}", "A)", False, True, True),
    ("A", "Option A", False, False, False),
    ("A", "A or B", False, False, False),
    ("A", r"\frac{A}{1}", True, False, False),
    # several letters: a set
    ("A, C", "A,C", True, True, True),
    ("A, C", "A and C", True, True, True),
    ("A, C", "C, A", False, True, True),
    ("A,C", "CA", False, True, True),
    ("AC", "CA", True, True, True),
    ("AC", "A, C", False, True, True),
    ("AC", "(A), (C)", False, True, True),
    ("AC", r"\text{C and A}", False, True, True),
    ("AC", "AD", False, False, False),
    ("AC", "A", False, False, False),
    ("AC", "ACD", False, False, False),
    ("AC", "ACC", False, False, False),
    ("ABD", "DAB", False, True, True),
    ("BAD", "DAB", False, False, False),  # a set is in alphabetical order: a name
    ("(A, C)", "(C, A)", False, False, False),
    # units and signs
    ("12", "12 cm", True, True, True),
    ("12", r"12\text{ cm}", True, True, True),
    ("30", r"30^\circ", True, True, True),
    ("30", "30°", False, True, True),
    ("30°", r"30^\circ", False, True, True),
    ("50", "50%", True, True, True),
    ("0.5", r"50\%", False, False, True),
    ("hours", "minutes", True, False, False),
    ("5 hours", "5 minutes", True, False, False),
    ("12 cm^2", "12 cm", True, False, False),
    ("√{5}", r"\sqrt{5}", False, True, True),
    ("2 m/s", "2", False, False, False),
    ("2191.7 metres", "2191.7", False, True, True),
    # numbers
    ("2/4", "1/2", False, False, True),
    (r"\frac12", r"\frac{2}{4}", False, False, True),
    ("0.5", r"\frac{1}{2}", True, True, True),
    ("0.33", r"\frac13", False, False, False),
    ("1000", "1,000", True, True, True),
    ("1000", "1 000", True, True, True),
    ("1000", "10 00", True, False, False),
    ("-5", "−5", False, True, True),
    ("3/2", "1 1/2", True, True, True),
    ("11/2", "1 1/2", True, False, False),
    ("11/2", r"1 1/2\text{ cm}", True, False, False),
    ("123/4", "12 3/4", True, False, False),
    ("235", "2 3 5", True, False, False),
    ("1.2e3", "1200", True, True, True),
    (r"2\sqrt{3}", r"\sqrt{12}", True, True, True),
    (r"2\sqrt{3}", "2", False, False, False),
    (r"2 \sqrt { 221 }", r"2\sqrt{221}", True, True, True),
    (r"4\pi", "12.57", False, False, False),
    (r"4\pi", "4", False, False, False),
    ("3", "3 or 4", False, False, False),
    ("12345678901234567", "12345678901234568", True, False, False),
    ("1.0000000001", "1.0000000002", True, False, False),
    ("4.2", "BF = 4.2", False, True, True),
    ("x = 5", "y = 5", True, False, False),
    # pairs, sets, intervals
    ("(1,2)", "[1,2]", False, False, False),
    ("(1,2)", "1,2", False, False, True),
    ("1,2", "2,1", False, False, True),
    (r"\{1,2\}", r"\{2,1\}", False, False, True),
    (SYSTEM, SYSTEM, True, True, True),
    ("x>3", r"(3,\infty)", False, False, True),
    (r"(-\infty,3)", "x<3", False, False, False),
    # words
    ("Left", "left", True, True, True),
    ("Yes", "Yes.", False, True, True),
    ("left", "felt", False, False, False),
    ("cat", "act", False, False, False),
]
ROWS = [pytest.param(*row, id=f"{row[0]} / {row[1]}") for row in BEHAVIOUR]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(num_workers=1) as grader:
        yield grader


@pytest.fixture(scope="module")
def lenient() -> Iterator[Grader]:
    if not HAS_MATH_VERIFY:
        pytest.skip("math-verify is not installed")
    with Grader(num_workers=1, fallback_verifier="math-verify") as grader:
        yield grader


def boxed(answer: str) -> list[str]:
    return [rf"So the answer is \boxed{{{answer}}}."]


@pytest.mark.parametrize(("gold", "answer", "mathruler", "ours", "with_math_verify"), ROWS)
def test_mathruler_alone(gold: str, answer: str, mathruler: bool, ours: bool, with_math_verify: bool) -> None:
    assert grade_answer(answer, gold) is mathruler


@pytest.mark.parametrize(("gold", "answer", "mathruler", "ours", "with_math_verify"), ROWS)
def test_our_grader(
    grader: Grader, gold: str, answer: str, mathruler: bool, ours: bool, with_math_verify: bool
) -> None:
    assert grader.grade(boxed(answer), [gold]) == [ours]


@pytest.mark.parametrize(("gold", "answer", "mathruler", "ours", "with_math_verify"), ROWS)
def test_our_grader_with_a_second_opinion(
    lenient: Grader, gold: str, answer: str, mathruler: bool, ours: bool, with_math_verify: bool
) -> None:
    assert lenient.grade(boxed(answer), [gold]) == [with_math_verify]


def test_a_second_opinion_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"math-verify, which is not installed: pip install 'vgpo\[math-verify\]'"):
        Grader(fallback_verifier="math-verify")


@pytest.mark.parametrize("text", ["left", "two words", r"\text{left}", "Straße", "ab", "5 felt", "AB", "2 cm+3", "左"])
def test_words_are_told_from_mathematics(text: str) -> None:
    assert is_words(text)


@pytest.mark.parametrize("text", ["x", "x+y", "xy+1", "2ab", "sin x", r"\pi", "x>3", r"\sqrt{ab}", "(a, b)", ""])
def test_mathematics_is_no_word(text: str) -> None:
    assert not is_words(text)


NUMBERS = ["5", "5.0", "5.000001", "-5", "+5.00", "0.5", "0.50", "-0.5", "0.49", "12.34", "12.340", "123456789.123456"]


@pytest.mark.parametrize("gold", NUMBERS)
def test_plain_numbers_are_compared_as_mathruler_does_but_without_it(gold: str) -> None:
    for answer in NUMBERS:
        assert compare_text(answer, gold) is grade_answer(answer, gold), answer
