"""Nothing but mathematics is ever evaluated, whatever the answers and reference answers."""

import ast
import random

import pytest

from tests.hostile.escapes import DELETE, KILL, POISON
from tests.hostile.spy import is_mathematics
from tests.hostile.texts import NASTY, fuzzed_answers
from tests.rewards.test_golden import ROWS
from vgpo.rewards import Grader, process
from vgpo.rewards.process import Outcome

REAL = list(dict.fromkeys(text for row in ROWS for text in (row["reference"], row["answer"]) if len(text) < 200))
SHORT = ["x+1", "2x", "3*y", r"2\sqrt{3}", r"\frac{7}{3}", "4*pi", "(1+x)**2", "1.5", r"\ln(2)", "3/4", "2**x"]
SEEDS = [*SHORT * 40, *REAL, *NASTY.values(), DELETE, KILL, POISON]


def evaluated(monkeypatch: pytest.MonkeyPatch, settings: dict, number: int, seed: int) -> dict[Outcome, list]:
    """The fuzzed pairs by what the spy saw of them; nothing is filtered before the symbolic check."""
    monkeypatch.setattr(process, "CHECKER", "tests.hostile.spy:load")
    monkeypatch.setattr("vgpo.rewards.grader.is_unsafe", lambda text: False)
    texts = list(fuzzed_answers(SEEDS, number, seed))
    draw = random.Random(seed)
    others = [draw.choice(texts if draw.random() < 0.3 else SHORT) for _ in texts]
    seen: dict[Outcome, list] = {outcome: [] for outcome in Outcome}
    with Grader(timeout=1.0, **settings) as grader:
        monkeypatch.setattr(grader, "_count", lambda pair, outcome: seen[outcome].append(pair))
        grader._check_all(list(zip(texts, others, strict=True)))
    return seen


MATHRULER, MATH_VERIFY = {}, {"fallback_verifier": "math-verify"}


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        pytest.param(MATHRULER, 1500, id="mathruler"),
        pytest.param(MATH_VERIFY, 300, id="math-verify"),
        pytest.param(MATHRULER, 100_000, id="mathruler, many", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param(MATH_VERIFY, 20_000, id="math-verify, many", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_fuzzed_answers_evaluate_only_mathematics(
    monkeypatch: pytest.MonkeyPatch, settings: dict, number: int
) -> None:
    seen = evaluated(monkeypatch, settings, number, seed=number)
    assert seen[Outcome.RIGHT] == []
    assert seen[Outcome.CRASH] == []
    assert len(seen[Outcome.REFUSED]) > number / 20  # pairs that reached a parser


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("Integer (2 )*sqrt (Integer (3 ))-Symbol ('x' )", True),
        ("Function ('f' )(Integer (2 ))**Float ('1.5' )", True),
        ("Symbol ('x' ).diff ('y' )", False),
        ("Symbol ('x' )[0 ]", False),
        ("open ('x' )", False),
        ("Symbol ('x()' )", False),
        ("lambda :0", False),
        ("[0 ]*2", False),
        ("sqrt (2 ,evaluate =False )", False),
    ],
)
def test_the_spy_knows_mathematics(code: str, expected: bool) -> None:
    assert ast.parse(code, mode="eval")
    assert is_mathematics(code) is expected
