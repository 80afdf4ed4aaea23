"""What commands print of datasets, answers and errors: nothing of it steers the terminal, and nothing is markup."""

import io

import pytest
import typer
from rich.console import Console, RenderableType

from tests.hostile.checks import STEERING, set_check
from tests.hostile.texts import NASTY
from vgpo.cli import readable
from vgpo.commands import data, reward
from vgpo.data import DataError
from vgpo.rewards import RewardError
from vgpo.rewards.trial import RewardTest, Timing
from vgpo.text import visible


def printed(*parts: RenderableType) -> str:
    """What a terminal without colours, wide enough for every line, would get."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(file=stream, width=100_000, no_color=True)
    console.print(*parts)
    stream.seek(0)
    return stream.read()


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_a_data_check_prints_nasty_text_as_text(text: str):
    check = set_check(text)
    shown = printed(data.panel(check.previews[0])) + printed(data.counts(check.summary))
    assert not STEERING.search(shown)
    for line in visible(text).expandtabs().split("\n"):
        assert line.strip() in shown


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_a_reward_test_prints_nasty_answers_as_text(text: str):
    stream = io.StringIO()
    test = RewardTest([], think=False)
    test.timings = [Timing(0.5, "accuracy", "reference answer", 3, text)]
    reward.show(test, [f"the reference answer {text}"], Console(file=stream, width=100_000, no_color=True))
    assert not STEERING.search(stream.getvalue())
    for line in visible(text[:40]).expandtabs().split("\n"):
        assert line.strip() in stream.getvalue()


@pytest.mark.parametrize("error", [DataError, RewardError])
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_an_error_that_quotes_nasty_text_is_printed_as_text(
    error: type[Exception], text: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(typer.Exit), readable((error,)):
        raise error(f"row 3: found {text}.")
    shown = capsys.readouterr().err
    assert not STEERING.search(shown)
    assert shown.startswith("error: row 3: found ")
    for line in visible(text).split("\n"):
        assert line.strip() in shown
