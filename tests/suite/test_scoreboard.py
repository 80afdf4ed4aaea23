"""Several evaluations in one table."""

import csv
import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vgpo.cli import app
from vgpo.evaluation.answers import GradedAnswer, Question
from vgpo.evaluation.benchmarks import BENCHMARKS, own_task
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.scores import suite_scores, task_scores
from vgpo.evaluation.tables import suite_csv, suite_record
from vgpo.run import RunFolderError
from vgpo.suite.folder import EvaluationFolder
from vgpo.suite.scoreboard import cell_of, read_scoreboard, scoreboard_csv


def evaluation(folder: Path, tasks: dict[str, str], protocol: str = "papo-greedy") -> EvaluationFolder:
    """The scores of an evaluation; tasks: a + for each right answer and a - for each wrong one."""
    found = []
    for task, verdicts in tasks.items():
        graded = [
            GradedAnswer(
                row=row, sample=0, completion="", truncated=False, predicted="", correct=verdict == "+",
                question=Question(row=row, id=str(row), problem="?", answer="1"),
            )
            for row, verdict in enumerate(verdicts)
        ]  # fmt: skip
        benchmark = BENCHMARKS.get(task) or own_task(task)
        found.append(task_scores(benchmark, graded, num_rows=len(graded), num_asked=len(graded)))
    scores = suite_scores(found)
    folder.mkdir()
    made = EvaluationFolder(folder)
    made.write_scores(suite_record(scores, protocol), suite_csv(scores, protocol))
    return made


def test_columns_are_those_of_all_in_the_order_of_the_paper_and_what_is_missing_is_marked(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", {"mine": "+-", "counting": "+++-"})
    second = evaluation(tmp_path / "b", {"wemath": "+--"})
    board = read_scoreboard([first, second])
    assert list(board.titles) == ["wemath", "counting", "mine", "Avg-Math", "Avg-Vision", "Overall"]
    cells = [[cell_of(scores.get(column)) for column in board.titles] for _, scores in board.rows]
    assert cells == [
        ["-", "75.0*", "50.0", "-", "75.0*", "75.0*"],
        ["33.3*", "-", "-", "33.3*", "-", "33.3*"],
    ]
    rows = list(csv.DictReader(io.StringIO(scoreboard_csv(board))))
    assert [(row["column"], row["accuracy"]) for row in rows if row["evaluation"].endswith("a")] == [
        ("counting", "0.75"),
        ("mine", "0.5"),
        ("Avg-Vision", "0.75"),
        ("Overall", "0.75"),
    ]


def test_other_protocols_are_not_put_into_one_table(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / "a", {"mine": "+"}), evaluation(tmp_path / "b", {"mine": "+"}, "lenient")]
    with pytest.raises(EvaluationError, match=r"by 'papo-greedy' and .* by 'lenient'; such scores are not comparable"):
        read_scoreboard(folders)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "a", {"mine": "+"})
    folder.scores_path.write_text('{"protocol": "papo-greedy", "tasks": [{"task": "mine"}], "averages": []}')
    with pytest.raises(RunFolderError, match=r"scores\.json"):
        read_scoreboard([folder])


def test_the_command_wants_evaluation_folders_with_scores(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["scores", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no evaluation" in " ".join(result.output.split())
