"""`vgpo eval --suite`: options that cannot be meant are refused before anything is loaded."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from vgpo.cli import app
from vgpo.suite import choices
from vgpo.suite import run as runner
from vgpo.suite.choices import default_folder
from vgpo.suite.run import SuiteRequest


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[SuiteRequest]:
    """What is asked of the runner, which does nothing."""
    found: list[SuiteRequest] = []
    monkeypatch.setattr(runner, "evaluate_suite", lambda request, console: found.append(request))
    return found


def evaluated(*words: object) -> Result:
    return CliRunner().invoke(app, ["eval", "toy", *map(str, words)])


def test_a_suite_is_all_of_its_tasks_and_names_choose_among_all(requests: list[SuiteRequest]) -> None:
    assert evaluated("--suite", "vgpo-vision").exit_code == 0
    assert evaluated("--tasks", "dynamath, wemath").exit_code == 0
    names = [[benchmark.name for benchmark in request.benchmarks] for request in requests]
    assert names == [["logicvista", "counting", "mmmu_pro", "mathverse_v"], ["dynamath", "wemath"]]
    assert {request.protocol.name for request in requests} == {"papo-greedy"}


def test_options_reach_the_runner(requests: list[SuiteRequest], tmp_path: Path) -> None:
    words = ["--tasks", "mine,geomath", "--data", "mine=a.parquet", "--data", "geomath=b.parquet"]
    words += ["--columns", '{"answer": "right"}', "--protocol", "lenient-avg@4", "--limit", "7", "--seed", "3"]
    words += ["--template", "plain", "--batch-size", "2", "--engine", "openai-api/local", "--out", str(tmp_path / "x")]
    assert evaluated(*words).exit_code == 0
    (request,) = requests
    assert (request.protocol.scorer, request.protocol.samples, request.protocol.temperature) == ("lenient", 4, 1.0)
    assert (request.limit, request.seed, request.template, request.batch_size) == (7, 3, "plain", 2)
    assert (request.engine, request.out) == ("openai-api/local", tmp_path / "x")
    assert request.data == ["mine=a.parquet", "geomath=b.parquet"]
    assert (request.reading.columns, request.reading.faulty_rows) == ({"answer": "right"}, "drop")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "vgop"], "there is no suite 'vgop' (did you mean 'vgpo'?)"),
        (["--tasks", "mathvsta"], "there is no task 'mathvsta' (did you mean 'mathvista'?)"),
        (
            ["--tasks", "wemath", "--data", "wemaht=x"],
            "'wemaht' is not one of the requested tasks (did you mean",
        ),
        (["--tasks", "wemath", "--format", "trl"], "--format and --columns are for tasks without public data"),
        (["--suite", "vgpo", "--protocol", "papo"], "there is no protocol 'papo'"),
        (["--suite", "vgpo", "--data", "nowhere"], "there is no folder 'nowhere'"),
        (["--data", "a", "--protocol", "lenient"], "--protocol is for benchmarks: add --suite vgpo"),
        (["--data", "a", "--seed", "1"], "--seed is for benchmarks: add --suite vgpo"),
        ([], "found 0 options --data, expected one dataset; for benchmarks add --suite vgpo"),
        (["--data", "a", "--data", "b"], "found 2 options --data, expected one dataset"),
    ],
)
def test_what_cannot_be_meant_is_refused(requests: list[SuiteRequest], words: list[str], message: str) -> None:
    result = evaluated(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert requests == []


def test_a_missing_runner_is_an_error_with_the_command(
    requests: list[SuiteRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def hidden(name: str, *rest: Any) -> Any:
        return None if name == "inspect_ai" else find(name, *rest)

    monkeypatch.setattr(choices, "find_spec", hidden)
    result = evaluated("--suite", "vgpo")
    assert result.exit_code == 2
    assert "pip install 'vgpo[eval]'" in result.output


def test_the_folder_is_named_after_run_or_checkpoint_and_protocol(tmp_path: Path) -> None:
    final = tmp_path / "mine" / "checkpoints" / "final"
    final.mkdir(parents=True)
    (tmp_path / "mine" / "config.yaml").write_text("template: plain\n")
    found = [default_folder(name, "papo-avg@8") for name in (str(final), "Qwen/Qwen2.5-VL-3B", "toy")]
    assert found == [
        Path("evaluations/mine-final-papo-avg-8"),
        Path("evaluations/Qwen-Qwen2.5-VL-3B-papo-avg-8"),
        Path("evaluations/toy-papo-avg-8"),
    ]
