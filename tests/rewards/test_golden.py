"""Verdicts on answers that models gave to public benchmarks, recorded before the grammar and the sandbox."""

import json
from pathlib import Path

import pytest

from vgpo.rewards import Grader

ROWS = [json.loads(line) for line in Path(__file__).with_name("golden_answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("reward", "settings"), [("accuracy", {}), ("accuracy_math_verify", {"fallback_verifier": "math-verify"})]
)
def test_verdicts_are_the_recorded_ones(reward: str, settings: dict) -> None:
    with Grader(timeout=30.0, **settings) as grader:
        verdicts = grader.grade([rf"\boxed{{{row['answer']}}}" for row in ROWS], [row["reference"] for row in ROWS])
        assert (grader.statistics.timeouts, grader.statistics.crashes) == (0, 0)
    changed = [row for row, verdict in zip(ROWS, verdicts, strict=True) if verdict != row[reward]]
    assert changed == []
