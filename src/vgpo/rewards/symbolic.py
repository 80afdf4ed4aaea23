"""The symbolic check: mathruler, and math-verify on request. Only the grader's workers and their server import it.

Both pass text to sympy, which evaluates it as Python. Here every such text is first checked against the grammar, at
the parser itself, and evaluated with only the listed names.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import sympy
from mathruler import grader as mathruler
from sympy.parsing import sympy_parser

from vgpo.answers import is_words
from vgpo.rewards import grammar
from vgpo.rewards.process import Checker, Outcome

_PARSE_EXPR = sympy_parser.parse_expr

# What `parse_expr` itself writes into the code that it evaluates.
_CONSTRUCTORS = ("Add", "Float", "Function", "Integer", "Mul", "Number", "Pow", "Rational", "Symbol")
_NAMES = (*_CONSTRUCTORS, *grammar.FUNCTIONS, *grammar.CONSTANTS)
_NAMESPACE: dict[str, Any] = {"__builtins__": {}, **{name: getattr(sympy, name) for name in _NAMES}}

# sympy imports parts of these on demand, which a confined worker cannot do.
_LATE_IMPORTS = (
    "assumptions", "calculus", "combinatorics", "concrete", "discrete", "functions", "integrals", "logic", "matrices",
    "ntheory", "physics.units", "polys", "series", "sets", "simplify", "solvers", "strategies", "tensor",
)  # fmt: skip
_NOT_NEEDED = (".tests", ".benchmarks", "_doc", "_wrapper")

_DIGITS = 400  # after the point, where math-verify compares numbers; its own six take 2^-99 for 2^-98

_WARM_UP = [
    (r"\frac{\sqrt{12}}{2}", r"\sqrt{3}"),
    (r"2\pi", "6.28"),
    (r"x^2+2x+1", r"(x+1)^2"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("x>3", r"(3,\infty)"),
    ("y=2x+1", "2x+1"),
    (r"50\%", "0.5"),
]


class Guard:
    """Passes only texts of the grammar to a parser. `refused`: whether it has rejected one since the last check."""

    def __init__(self) -> None:
        self.refused = False

    def parse_expr(self, text: str, *args: Any, **kwargs: Any) -> Any:
        """sympy's `parse_expr` with only the listed names."""
        self._require(not grammar.is_costly(text) and grammar.is_expression(text))
        return _PARSE_EXPR(text, *args, **{**kwargs, "global_dict": dict(_NAMESPACE)})

    def around_latex(self, parse: Callable[..., Any]) -> Callable[..., Any]:
        """A guarded LaTeX parser."""

        def parse_latex(text: str, *args: Any, **kwargs: Any) -> Any:
            self._require(not grammar.is_costly(text) and grammar.is_latex(text))
            return parse(text, *args, **kwargs)

        return parse_latex

    def _require(self, allowed: bool) -> None:
        if not allowed:
            self.refused = True
            raise sympy.SympifyError("text outside the grammar of the symbolic check")


def load_checker(fallback: bool) -> Checker:
    """The check of one pair (answer, reference answer). fallback: also accept what math-verify finds equal.

    Everything that a check may import is loaded afterwards, and the parsers of this process are guarded.
    """
    _preload()
    guard = Guard()
    # mathruler, math-verify and `sympify` all come here; math-verify copies the name when it is imported
    sympy_parser.parse_expr = guard.parse_expr
    sympy.parsing.parse_expr = guard.parse_expr
    is_right = _with_fallback(guard) if fallback else mathruler.grade_answer

    def check(answer: str, reference: str) -> Outcome:
        guard.refused = False
        if is_right(answer, reference):
            return Outcome.RIGHT
        return Outcome.REFUSED if guard.refused else Outcome.WRONG

    for answer, reference in _WARM_UP:
        check(answer, reference)
    return check


def _with_fallback(guard: Guard) -> Callable[[str, str], bool]:
    """mathruler's verdict or, where it says no and both sides are mathematics, that of math-verify."""
    import math_verify  # type: ignore[import-untyped,import-not-found,unused-ignore]

    latex = math_verify.LatexExtractionConfig()
    normalization = dataclasses.replace(latex.normalization_config, units=False)  # it takes the m of 2x+3m for a unit
    extraction = [dataclasses.replace(latex, normalization_config=normalization), math_verify.ExprExtractionConfig()]

    math_verify.parser.latex2sympy = guard.around_latex(math_verify.parser.latex2sympy)

    def boxed(text: str) -> list[object]:
        # Bare LaTeX would be read up to its first number. Time is limited from outside, because alarms miss long sums.
        return math_verify.parse(rf"\boxed{{{text}}}", extraction_config=extraction, parsing_timeout=None)

    def is_right(answer: str, reference: str) -> bool:
        if mathruler.grade_answer(answer, reference):
            return True
        if is_words(answer) or is_words(reference):  # it multiplies letters: "felt" would be "left"
            return False
        return math_verify.verify(
            boxed(reference), boxed(answer), float_rounding=_DIGITS, numeric_precision=_DIGITS, timeout_seconds=None
        )

    return is_right


def _preload() -> None:
    for name in _LATE_IMPORTS:
        package = importlib.import_module(f"sympy.{name}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not any(part in module.name for part in _NOT_NEEDED):
                importlib.import_module(module.name)
