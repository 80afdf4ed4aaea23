"""The grader's benchmark measures what it says: known verdicts, and answers that do hang."""

from collections.abc import Iterator

import pytest
from benchmarks import grader as benchmark

from vgpo.answers import compare_text, extract_boxed
from vgpo.rewards import Grader
from vgpo.rewards.grammar import is_unsafe


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
