import contextlib
import tokenize
import unicodedata

import pytest

from vgpo.rewards.grammar import is_costly, is_expression, is_latex


@pytest.mark.parametrize(
    "text",
    [
        "(6.5)-(13/2)",
        "(2sqrt(3))-(4pi)",
        "60sqrt(3)m",
        "2**x-.5e-3*y",
        "xsqrt(3)/2",
        "3/2sqrt3",
        "ln(2)",
        "αβ/2-ϕ",
        "240π**2",
        "X",
        " 7 ",
        "8.0厘米-см",
        "x_1+s_max_2",
        "(1\n+2)",
    ],
)
def test_mathematics_is_an_expression(text: str) -> None:
    assert is_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "x.diff(y)",
        "().x",
        "x[0]",
        "[0]*9",
        "()*9",
        "x()",
        "sqrt( )",
        "(\n)*9",
        "ln(\n*x)",
        "sqrt(*x)",
        "ln( **x)",
        "{1}",
        "1,2",
        "f(x,y)",
        "sqrt(x=2)",
        "x=2",
        "x==2",
        "x if y else z",
        "1or 0",
        "lambda:0",
        "__import__",
        "_",
        "_x",
        "x_",
        "x__y",
        "Ab",
        "'x'",
        '"x"',
        "f'x'",
        "x;y",
        "x:y",
        "x@y",
        "x//y",
        "x%y",
        "x|y",
        "x&y",
        "~x",
        "x<y",
        "x<<9",
        "x:=1",
        "5!",
        "#x",
        "x\ny",
        "0x1f",
        "0b1",
        "1_000",
        "2j",
        "1e9999",
        "Symbol",
        "Integer(2)",
        "√2",
        "x²",
        "½",
        "ⅹ",
        "１",
        "٣",
        "𝑥",
        "x\u0301",
        "ﬁ",
        "x\u200b",
        "〇",
        "x٣",
        "$x",
        "\\pi",
        "\x00",
    ],
)
def test_all_else_is_none(text: str) -> None:
    # newer versions of Python find no tokens in some of them; sympy finds none either
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        assert not is_expression(text)


def test_no_look_alike_is_listed() -> None:
    """What a Python name turns into another one (NFKC), but for variants of Greek letters, which become symbols."""
    look_alikes = [c for c in map(chr, range(128, 0x110000)) if unicodedata.normalize("NFKC", c) != c]
    assert len(look_alikes) > 4000
    assert "".join(filter(is_listed, look_alikes)) == "µϑϕϖϰϱϵ"


def is_listed(character: str) -> bool:
    try:
        return bool(character.strip()) and is_expression(f"x{character}")
    except (tokenize.TokenError, SyntaxError):
        return False


@pytest.mark.parametrize(
    "text", [r"\frac{1}{2}", r"x \in (-\infty, 3]", r"\text{5 cm}^2", "90°", r"\{1,2\}", r"50\%", "π"]
)
def test_latex(text: str) -> None:
    assert is_latex(text)


@pytest.mark.parametrize(
    "text", ["'x'", '"', "`x`", "x;y", "x@y", "#x", "5!", "ⅹ", "x²", "\\", "\x00", "x\u200b", "\\ⅹ"]
)
def test_not_latex(text: str) -> None:
    assert not is_latex(text)


@pytest.mark.parametrize("text", ["9**9**9", "9^{9^{9}}", "2**(3**x)", "10**99999", "7!", "x^{-y^2}"])
def test_costly(text: str) -> None:
    assert is_costly(text)


@pytest.mark.parametrize("text", ["x**2+y**2", "10^{9999}", r"1\!000", "2*10**6"])
def test_not_costly(text: str) -> None:
    assert not is_costly(text)


def test_a_long_text_is_read_in_linear_time() -> None:
    assert is_expression("x+" * 500 + "1")
    assert is_latex(r"\frac{x}{2}+" * 80 + "1")
