import time

import pytest

from vgpo.rewards import extract_boxed
from vgpo.rewards.answers import is_refused, strip_outer_box, textual_verdict


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{4}, no: \boxed{ 5 } done", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
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
    ["A", "(A)", "A.", "A:", "A: 12", "A. a cat", "a", "(a)", r"\text{A}", r"\textbf{A}", r"\text{(A)}", "$A$"],
)
def test_choice_letter_is_read(answer: str) -> None:
    assert textual_verdict(answer, "A") is True
    assert textual_verdict(answer, "C") is False


@pytest.mark.parametrize(
    "answer", ["Option A", "A cat", "AC", "A or B", r"\frac{A}{B}", "12", "A,B", "(A", "Aday", "A.5"]
)
def test_other_text_is_no_choice_letter(answer: str) -> None:
    assert textual_verdict(answer, "A") is False


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
        ("1 1/2", "11/2", None),  # blanks between digits mean something: not equal as text
        (r"\sqrt{12}", r"2\sqrt{3}", None),
        ("", "7", False),
        (None, "7", False),
        (None, "None", False),
        ("None", "None", True),
        ("7" * 1_000_000, "7", False),
    ],
)
def test_textual_verdict(answer: str | None, gold: str, verdict: bool | None) -> None:
    assert textual_verdict(answer, gold) is verdict


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
    assert is_refused(text)


@pytest.mark.parametrize("text", ["x^2y^2", "(x^2)^3", r"1,\!000", "2^{10}", "3.5", "0.5x", r"\frac{1}{2}", "x_{1}"])
def test_ordinary_mathematics_is_not_refused(text: str) -> None:
    assert not is_refused(text)
