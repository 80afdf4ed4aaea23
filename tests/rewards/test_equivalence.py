"""Pairs of answers that are the same, that differ, and that are choices, each graded in both directions."""

import importlib.util
from collections.abc import Iterator

import pytest

from vgpo.answers import canonical_answer, compare_text, symbolic_pair
from vgpo.rewards import Grader

HAS_MATH_VERIFY = importlib.util.find_spec("math_verify") is not None

SAME = [
    ("12 cm", "12"),
    (r"12\text{ cm}", "12 cm"),
    (r"12\mathrm{cm}", r"12\text{ centimeters}"),
    ("12 cm^2", r"12\ \mathrm{cm}^{2}"),
    ("12 square cm", "12 cm²"),
    (r"12\text{ cm}^3", "12 cubic centimetres"),
    ("12 inch", "12 inches"),
    ("inch", "inches"),
    ("foot", "feet"),
    ("30 degrees", "30°"),
    (r"30^\circ", "30°"),
    (r"30^{\circ}", "30 degrees"),
    ("5 hours", "5 hour"),
    ("5 m", "5 meters"),
    ("5m", "5"),
    ("9米", "9 m"),
    ("9πcm^{2}", r"9\pi"),
    (r"40\%", "40 percent"),
    (r"\$5", "5 dollars"),
    (r"\$5", "5"),
    ("12345678901234567", "12,345,678,901,234,567"),
    ("1.50", "1.5"),
    ("0.000000000012", "1.2e-11"),
    ("Yes", "Yes."),
    (r"\text{Monday.}", "Monday"),
    ("left", "Left。"),
    ("√5", r"\sqrt{5}"),
    ("√{12}", "2√3"),
    ("2π", r"2\pi"),
    ("4 * pi", "4π"),
    ("x = 5", "5"),
    ("x=5 cm", "5"),
    ("BF = 4.2", "4.2"),
    (r"S_{\triangle ABC}=8", "8"),
    (r"\angle ABC = 30^\circ", "30"),
    ("$x=5$", "x = 5"),
    ("3-5", "3 - 5"),
    ("3–5", "3-5"),
    ("10:30", "10 : 30"),
    ("１２", "12"),
    ("（３，４）", "(3,4)"),
    ("2xy", "2yx"),
    ("x+y", "y+x"),
    ("-5 cm", "−5"),
    ("1 1/2 cm", "3/2"),
    ("1,000 km", "1000"),
    (r"\frac{1}{2} m", "0.5"),
    ("3 and 4", "3, 4"),
    (r"8\sqrt{3}{squareinches}", r"8\sqrt{3}"),
    (r"3\frac{1}{2}", "3.5"),
]

DIFFERENT = [
    ("inch", "foot"),
    ("hours", "minutes"),
    ("5 hours", "5 minutes"),
    (r"12\text{ cm}", r"12\text{ mm}"),
    ("12 cm^2", "12 cm"),
    ("12 cm^2", "12 cm^3"),
    ("12 square inches", "12 inches"),
    (r"12\mathrm{cm}", r"12\mathrm{m}"),
    ("60 miles per hour", "60 meters per second"),
    ("5 cm/s", "5 mm/s"),
    ("5 cm/s", "5/s"),
    ("50%", "50 cm"),
    ("30°C", "30°F"),
    (r"30^\circ", "30 m"),
    ("9米", "9 cm"),
    ("abc", "cab"),
    ("noon", "onno"),
    ("dad", "add"),
    ("AB", "BA."),
    ("5 felt", "5 left"),
    (r"\text{no}", "on"),
    ("xy", "yx"),
    (r"AB\cdot CD", r"AC\cdot BD"),
    ("12345678901234567", "12345678901234568"),
    ("100000000000000000001", "100000000000000000002"),
    ("1.0000000001", "1.0000000002"),
    ("1.00000000001", "1"),
    ("5 12345678901234567", "5"),
    ("3-5", "-2"),
    ("3-5", "3"),
    ("2020-01-02", "2017"),
    ("10:30", "10:31"),
    ("1:2", "2:4"),
    ("3~5", "8"),
    ("5-3", "2"),
    ("1/2/2020", "1/4040"),
    ("x = 5", "y = 5"),
    ("x = 5", "6"),
    ("x+y=5", "6"),
    ("xy=6", "6"),
    ("x=5 or x=6", "6"),
    ("2=3", "3"),
    ("good day", "good"),
    ("two days", "two"),
    ("2x+3m", "2x+3"),
    ("12 cm", "inch"),
    ("cm", "12"),
    ("5 feet 3 inches", "5 feet 4 inches"),
    ("Monday", "Tuesday."),
    ("Ｂ", "A"),
    (r"2\pi", "2"),
    (r"\sqrt{5}", "5"),
    ("x>3", "3"),
    ("day", "month"),
    ("second", "minute"),
    (r"\$5", "5 euros"),
    ("5 dollars", "5 euros"),
    ("$12", "€12"),
    ("9 a.m.", "9 p.m."),
    ("10:30 am", "10:30 pm"),
    ("[3,5]", "[3,5)"),
    ("1 hour", "1 day"),
    ("12 in", "12 ft"),
    ("5 min", "5 s"),
    ("x^2", "2x"),
    ("2 cm", "2 dm"),
    (r"\frac{1}{2}m", r"\frac{1}{2}cm"),
    ("x=5 cm", "x=5 mm"),
    ("A=12 cm^2", "12 cm"),
    ("3 apples", "3 pears"),
    ("3 apples", "4 apples"),
]

# reference answer, answer
CHOSEN = [
    ("A", "(A)"),
    ("A", "[A]"),
    ("A", "A."),
    ("A", "A)"),
    ("A", "Ａ"),
    ("A", "（A）"),
    ("A", r"\textbf{A}"),
    ("A", r"\mathrm{A}"),
    ("A", r"\mathbf{A}"),
    ("A", r"\operatorname{A}"),
    ("A", r"{\bf (A)}"),
    ("A", r"\text{(A)}\;\text{P and R}"),
    ("A", "(A)3"),
    ("A", r"\textbf{(A)}~5"),
    ("A", "A:40"),
    ("A", "A．12"),
    ("A", r"\textit{A}"),
    ("A", "**A**"),
    ("A", r"\(A\)"),
    ("（A）", "A"),
    ("A", r"(A)9(\pi-2)"),
    ("A", "(A) (x + a)^2"),
    ("A", "A.x=3"),
    ("A", "(A)。"),
    ("A", "A、12"),
    ("A", "（A）、12"),
    ("A、", "A"),
    ("A、C", "A, C"),
    ("L", "(L) 3"),
    ("K", "K. 8 is the root"),
]

NOT_CHOSEN = [
    ("A", "(A)(B)"),
    ("A", "A.B."),
    ("A", "(A)3(B)4"),
    ("A", "(A),(B)"),
    ("A", "A.3 B.4"),
    ("A", "A)3 B)4"),
    ("A", "A/B"),
    ("A", "[A][B]"),
    ("A", "(B)3"),
    ("A", "AB"),
    ("A", "A5"),
    ("A", "Aday"),
    ("A", "(A) or (B)"),
    ("A", r"\text{A}\text{B}"),
    ("A", "A:B:C"),
    ("A", "(A) 3, (B) 4"),
    ("A", "A、B"),
    ("A", "A、B、12"),
    ("A", "A 和 B"),
    ("K", "L"),
]


@pytest.fixture(scope="module", params=[None, "math-verify"])
def grader(request: pytest.FixtureRequest) -> Iterator[Grader]:
    if request.param and not HAS_MATH_VERIFY:
        pytest.skip("math-verify is not installed")
    with Grader(timeout=20.0, num_workers=1, fallback_verifier=request.param) as grader:
        yield grader


def accepted(grader: Grader, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the pairs (reference answer, answer) that are graded right."""
    verdicts = grader.grade([rf"\boxed{{{answer}}}" for _, answer in pairs], [gold for gold, _ in pairs])
    return [pair for pair, right in zip(pairs, verdicts, strict=True) if right]


def swapped(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(right, left) for left, right in pairs]


@pytest.mark.parametrize("order", [list, swapped])
def test_the_same_answer_in_another_form_is_right(grader: Grader, order) -> None:
    assert accepted(grader, order(SAME)) == order(SAME)


@pytest.mark.parametrize("order", [list, swapped])
def test_another_answer_is_wrong(grader: Grader, order) -> None:
    assert accepted(grader, order(DIFFERENT)) == []


def test_every_answer_is_right_against_itself(grader: Grader) -> None:
    pairs = [(text, text) for pair in SAME + DIFFERENT for text in pair]
    assert accepted(grader, pairs) == pairs


def test_a_choice_letter_is_read_in_its_forms(grader: Grader) -> None:
    assert accepted(grader, CHOSEN) == CHOSEN


def test_what_names_no_letter_or_several_is_wrong(grader: Grader) -> None:
    assert accepted(grader, NOT_CHOSEN) == []


@pytest.mark.parametrize("length", [16, 17, 21, 100, 999])
def test_integers_of_any_length_are_compared_digit_by_digit(length: int) -> None:
    number = "7" * length
    assert compare_text(f"+{number}", number) is True
    assert compare_text(number[:-1] + "8", number) is False
    assert compare_text(f"0.{number[:-2]}8", f"0.{number[:-2]}7") is False


def test_the_symbolic_check_gets_values_without_units_and_names() -> None:
    answer, gold = map(canonical_answer, (r"x = \sqrt{12} \text{ cm}", r"2√{3}cm"))
    assert compare_text(answer, gold) is None
    assert symbolic_pair(answer, gold) == (r"\sqrt{12}", r"2\sqrt{3}")


def test_a_percentage_keeps_its_sign_for_the_second_opinion() -> None:
    assert compare_text(r"50\%", "0.5") is None
    assert symbolic_pair(r"50\%", "0.5") == (r"50\%", "0.5")
