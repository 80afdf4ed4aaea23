"""The grader's benchmark measures what it says: known verdicts, and answers that do hang."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import grader as benchmark

from vgpo.answers import compare_text, extract_boxed
from vgpo.rewards import Grader
from vgpo.rewards.grammar import is_unsafe

COUNTS = re.compile(r"^([a-z_ -]+?) {2,}((?: *[0-9]+){4})$", re.MULTILINE)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


@pytest.mark.parametrize("kinds", [benchmark.ORDINARY, benchmark.SYMBOLIC], ids=["ordinary", "symbolic"])
def test_verdicts_are_the_known_ones(grader: Grader, kinds: dict[benchmark.Kind, int]) -> None:
    rollouts = benchmark.draw_rollouts(kinds, 64, seed=5)
    assert len(rollouts) == 64 * benchmark.GROUP
    assert sum(rollout.right for rollout in rollouts) == len(rollouts) // 2
    benchmark.refuse_wrong_verdicts(grader, rollouts)
    assert grader.statistics.refused == grader.statistics.timeouts == 0


def test_a_wrong_verdict_ends_it(grader: Grader) -> None:
    with pytest.raises(SystemExit, match="'7' was graded False against '8': nothing was timed"):
        benchmark.refuse_wrong_verdicts(grader, [benchmark.Rollout(benchmark.boxed("7"), "8", right=True)])


@pytest.mark.parametrize(("answer", "refused"), [(benchmark.tower, True), (benchmark.slow_power, False)])
def test_one_answer_in_twenty_hangs(answer, refused: bool) -> None:
    rollouts = benchmark.write_hanging(answer, seed=5)
    written = {answer(number) for number in range(len(rollouts))}
    pairs = {(extract_boxed(rollout.response), rollout.gold) for rollout in rollouts}
    hanging = [(text, gold) for text, gold in pairs if text in written]
    assert len(hanging) == round(len(rollouts) / 20)
    for text, gold in hanging:
        assert compare_text(text, gold) is None
        assert is_unsafe(text) is refused


def test_known_verdicts_are_read_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.jsonl"
    rows = [("5 hours", "5 minutes", False), ("5 hours", "5", True), ("7", "8", False)]
    path.write_text(
        "\n".join(json.dumps({"gold": gold, "answer": text, "right": right}) for gold, text, right in rows)
    )
    benchmark.report_verdicts(benchmark.read_answers(path))
    counts = {name: numbers.split() for name, numbers in COUNTS.findall(capsys.readouterr().out)}
    assert counts["accuracy"] == ["1", "0", "0", "2"]
    assert counts["mathruler alone"] == ["1", "0", "1", "1"]


def test_an_answer_without_a_verdict_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"gold": "7", "answer": "7"}')
    with pytest.raises(SystemExit, match=r"answers.jsonl, line 1: expected an object with gold, answer and right"):
        benchmark.read_answers(path)
