import time

import pytest

from vgpo.answers import canonical_answer, choice_letter, compare_text, strip_outer_box
from vgpo.rewards import extract_boxed
from vgpo.rewards.grammar import is_unsafe


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{4}, no: \boxed{ 5 } done", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{x \} y}", r"x \} y"),
        (
            r"\boxed{\left\{\begin{array}{l}x=1\\y=2\end{array}\right.}",
            r"\left\{\begin{array}{l}x=1\\y=2\end{array}\right.",
        ),
        (r"\boxed{5\\}", r"5\\"),
        (r"\boxed{None}", "None"),
        (r"\boxed{}", ""),
        (r"\boxed{5} then \boxed{", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed 5", None),
        (r"\fbox{5}", None),
        ("", None),
        (r"<|im_end|>\boxed{<|image_pad|>}<|endoftext|>", "<|image_pad|>"),
        (r"<script>alert(1)</script>\boxed{<b>5</b>}", "<b>5</b>"),
    ],
)
def test_extract_boxed(text: str, content: str | None) -> None:
    assert extract_boxed(text) == content


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" + "{" * 1_000_000,
        r"\boxed{" * 150_000,
        "}" * 1_000_000 + r"\boxed{" + "5" * 1_000_000,
        r"\boxed{" + "{}" * 500_000,
    ],
)
def test_unclosed_boxes_of_a_megabyte_take_linear_time(text: str) -> None:
    start = time.process_time()
    assert extract_boxed(text) is None
    assert time.process_time() - start < 5.0  # quadratic: minutes


@pytest.mark.parametrize(
    ("gold", "bare"),
    [
        (r"\boxed{A}", "A"),
        (r" \boxed{ \frac{1}{2} } ", r"\frac{1}{2}"),
        (r"\boxed{1}, \boxed{2}", r"\boxed{1}, \boxed{2}"),
        (r"\boxed{1} cm", r"\boxed{1} cm"),
        (r"\boxed{1", r"\boxed{1"),
        ("12", "12"),
    ],
)
def test_one_enclosing_box_is_stripped_from_golds(gold: str, bare: str) -> None:
    assert strip_outer_box(gold) == bare


@pytest.mark.parametrize(
    "answer",
    [
        "A", "(A)", "A.", "A:", "A)", "A: 12", "A. a cat", "a) 12", "(A) 12", "a", "(a)", r"\text{A}", r"\textbf{A}",
        r"\text{(A)}", r"(\text{A})", r"\textbf{A.} 12", "$A$", "A. oranges", "A. Figure B.", "A. Figure (b)", "A: B",
        "A. the lines a and b",
    ],
)  # fmt: skip
def test_choice_letter_is_read(answer: str) -> None:
    for right in ("A", "(A)", "A.", "A:", "A)", r"\text{A}", "$A$", r"(\text{A})"):
        assert compare_text(answer, right) is True
    for wrong in ("C", "(C)", "C.", r"\text{C}"):
        assert compare_text(answer, wrong) is False


@pytest.mark.parametrize("gold", ["a", "(a)", "AC", "M", "A. 12", "(A", "(A).", "A, C", "None", ""])
def test_other_golds_are_no_choice_letter(gold: str) -> None:
    assert choice_letter(gold) is None


def test_a_choice_letter_in_a_box() -> None:
    assert choice_letter(r"\boxed{(B)}") == "B"


@pytest.mark.parametrize(
    "answer",
    [
        "A) or B)", "(A) or (B)", "(A) and (B)", "A.  or B", "A. B. C.", "A) B)", "(A) (B)", "A) 3 B) 4",
        "(A) 3 (B) 4", "A. 3, B. 4", "A)\nB)",
    ],
)  # fmt: skip
def test_two_letters_are_no_choice(answer: str) -> None:
    assert compare_text(answer, "A") is False
    assert compare_text(answer, "B") is False


@pytest.mark.parametrize(
    "text", ["A." + " " * 1_000_000, "A." + " b." * 300_000, r"\text{" * 100_000, "A) " + "(" * 1_000_000]
)
def test_a_choice_of_a_megabyte_takes_linear_time(text: str) -> None:
    start = time.process_time()
    compare_text(text, "C")
    canonical_answer("1 " * 500_000 + text)
    assert time.process_time() - start < 5.0  # quadratic: minutes


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("−5", "-5"),
        ("90°", r"90^\circ"),
        ("1 1/2", "1+1/2"),
        ("2  3\n5", "2+3+5"),
        ("1 000 000", "1000000"),
        ("0.123 456", "0.123456"),
        (r"\dfrac 1 2", r"\dfrac 1 2"),
        (r"2 \sqrt { 221 }", r"2 \sqrt { 221 }"),
        ("12 cm", "12 cm"),
    ],
)
def test_signs_and_blanks_between_digits(text: str, read: str) -> None:
    assert canonical_answer(text) == read


@pytest.mark.parametrize(
    "answer", ["Option A", "A cat", "AC", "A or B", r"\frac{A}{B}", "12", "A,B", "(A", "Aday", "A.5"]
)
def test_other_text_is_no_choice_letter(answer: str) -> None:
    assert compare_text(answer, "A") is False


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("7", "7", True),
        ("007", "7", True),
        ("+7", "7", True),
        ("8", "7", False),
        ("-7", "7", False),
        ("Left", "left", True),
        (r"\text{left}", "left", True),
        (r"2 \sqrt { 221 }", r"2\sqrt{221}", True),
        ("1+1/2", "11/2", None),
        (r"\sqrt{12}", r"2\sqrt{3}", None),
        ("", "7", False),
        (None, "7", False),
        (None, "None", False),
        ("None", "None", True),
        ("7" * 1_000_000, "7", False),
    ],
)
def test_textual_verdict(answer: str | None, gold: str, verdict: bool | None) -> None:
    assert compare_text(answer, gold) is verdict


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "9^{9^{9}}",
        "5^(5^(5^5))",
        "999999999!",
        "2**99999999",
        "__import__('os')",
        "x.y",
        "x__y",
        "7" * 1001,
    ],
)
def test_dangerous_text_is_refused(text: str) -> None:
    assert is_unsafe(text)


@pytest.mark.parametrize("text", ["x^2y^2", "(x^2)^3", r"1,\!000", "2^{10}", "3.5", "0.5x", r"\frac{1}{2}", "x_{1}"])
def test_ordinary_mathematics_is_not_refused(text: str) -> None:
    assert not is_unsafe(text)
