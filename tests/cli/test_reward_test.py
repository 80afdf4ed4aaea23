"""`vgpo reward test`: reference answers score 1, everything else close to 0, or the rows are named."""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from PIL import Image
from trl import GRPOTrainer
from typer.testing import CliRunner

from vgpo.cli import app
from vgpo.recipe import loading, train
from vgpo.rewards import load_reward
from vgpo.rewards import trial as command
from vgpo.toy import checkpoint_path

# Answers as Geometry3K writes them: blanks inside LaTeX, decimals, degrees, a choice now and then.
# Integers first: against others the slow power is computed until the grader's time is up.
GOLDS = ["12", "106", "8.5", r"\frac { 9 } { 4 }", r"\boxed{65}", "B", r"16 \pi", r"2 \sqrt { 221 }"]

OWN = r"""
import re

def integers(completions, answer, **kwargs):
    boxes = [re.search(r"\\boxed\{(\d+)\}", text[-1]["content"]) for text in completions]
    return [float(box is not None and box.group(1) == gold) for box, gold in zip(boxes, answer)]

def brevity(completions, completion_ids, images, **kwargs):
    assert all(ids or not text[-1]["content"] for ids, text in zip(completion_ids, completions))
    assert all(pictures[0].width == 8 for pictures in images)
    return [-len(ids) / 1000 for ids in completion_ids]

def generous(completions, **kwargs):
    return [1.0 for _ in completions]

async def never(completions, **kwargs):
    return [None for _ in completions]

def trusting(completions, answer, **kwargs):
    boxes = [re.search(r"\\boxed\{(.*)\}", text[-1]["content"]) for text in completions]
    return [float(box is not None and (box.group(1) == gold or len(box.group(1)) > 1000))
            for box, gold in zip(boxes, answer)]

def raises(completions, answer, **kwargs):
    return [1 / 0 if "221" in gold else 0.0 for gold in answer]

def wants_solution(completions, solution, **kwargs):
    return [1.0 for _ in completions]

def hangs(completions, **kwargs):
    return [eval("9**(9*9*9*9*9*9*9*9*9*9*9)") for _ in completions]
"""


@pytest.fixture
def geometry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of Geometry3K's shape beside a module of rewards, in the working folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(picture, "PNG")
    rows = [
        {
            "images": [{"bytes": picture.getvalue(), "path": None}],
            "problem": f"<image>Find x in figure {row}.",
            "answer": gold,
        }
        for row, gold in enumerate(GOLDS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "geometry.parquet")
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    load_reward.cache_clear()
    return tmp_path / "geometry.parquet"


@pytest.fixture
def reward_test(
    geometry: Path, write_recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """The command on that file; a model must not be loaded."""

    def no_model(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "load_model", no_model)
    monkeypatch.setattr(GRPOTrainer, "__init__", no_model)
    monkeypatch.setenv("COLUMNS", "160")

    def invoke(lines: str, *words: object) -> Result:
        recipe = write_recipe(lines)
        data = ["--train_data", str(geometry)]
        return CliRunner().invoke(app, ["reward", "test", str(recipe), *data, *map(str, words)])

    return invoke


def table(output: str) -> dict[str, list[str]]:
    """The lines of the first table by kind of answer: mean, rows, rows that fail."""
    lines = [re.split(r"\s{2,}", line.rstrip()) for line in output.split("slowest")[0].splitlines()]
    return {line[1]: line[2:] for line in lines if len(line) == 5}


def test_a_good_recipe(reward_test: Callable[..., Result]) -> None:
    done = reward_test("rewards: [accuracy]\n")
    assert done.exit_code == 0, done.output
    assert table(done.output) == {
        "answer": ["mean", "rows", "rows that fail"],
        "reference answer": ["1.000", "8", "none"],
        "as a model writes it": ["1.000", "8", "none"],
        "another row's answer": ["0.000", "8", "none"],
        "empty response": ["0.000", "8", "none"],
        "empty box": ["0.000", "8", "none"],
        "10,000 characters": ["0.000", "2", "none"],
        "power tower": ["0.000", "2", "none"],
        "slow power": ["0.000", "2", "none"],
    }
    slowest = done.output.split("slowest")[1].splitlines()
    assert "accuracy_reward" in slowest[1]
    assert "all reference answers score 1" in slowest[-1]


def test_a_form_that_is_asked_for_is_given(reward_test: Callable[..., Result]) -> None:
    done = reward_test("rewards: [accuracy, format]\nreward_weights: [0.9, 0.1]\ntemplate: think_boxed\n")
    assert done.exit_code == 0, done.output
    assert re.search(r"format_reward +reference answer +1\.000 +8 +none", done.output)
    assert re.search(r"another row's answer +1\.000 +8 +not tested", done.output)


THINKING = "<|im_start|>assistant\n<think>\n"


@pytest.mark.parametrize("closed", [False, True])
def test_a_thought_that_the_chat_template_opens_is_gone_on_with(
    reward_test: Callable[..., Result], tmp_path: Path, closed: bool
) -> None:
    model = tmp_path / "thinking"
    shutil.copytree(checkpoint_path(), model)
    template = model / "chat_template.jinja"
    opened = THINKING + ("\n</think>\n\n" if closed else "")
    text = template.read_text().replace("<|im_start|>assistant\n", opened)
    template.write_text(text)
    assert "<think>" in text
    done = reward_test("rewards: [accuracy, format]\ntemplate: think_boxed\n", "--model_name_or_path", model)
    assert re.search(r"format_reward +reference answer +1\.000 +8 +none", done.output)
    assert done.exit_code == 0


def test_reference_answers_that_no_response_equals_are_named(reward_test: Callable[..., Result]) -> None:
    rows = pq.read_table("geometry.parquet").to_pylist()
    rows[2]["answer"] = "<final>8.5</final>"
    rows[3]["answer"] = "First we see that " + "the angle is half of the arc, and so " * 4 + "it is 12."
    pq.write_table(pa.Table.from_pylist(rows), "geometry.parquet")
    done = reward_test("rewards: [accuracy]\n")
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert (
        "row 2: no response will equal the reference answer '<final>8.5</final>': it contains the tag '</final>'. "
        "Keep only the answer" in said
    )
    assert "it is a text of 42 words" in said


def test_golds_that_do_not_score_1_are_named(reward_test: Callable[..., Result]) -> None:
    done = reward_test("rewards: [accuracy, own.py:brevity]\n")
    assert done.exit_code == 1
    assert re.search(r"fault: brevity: row 0: the reference answer '12' scores -0\.\d+, not 1", done.output)
    assert re.search(r"brevity +reference answer +-0\.\d+ +8 +rows 0, 1, 2, 3, 4, 5, 6, 7", done.output)


def test_a_reward_that_judges_no_answer_can_be_exempt(reward_test: Callable[..., Result]) -> None:
    done = reward_test("rewards: [accuracy, own.py:brevity]\n", "--exempt", "brevity", "--rows", 3)
    assert done.exit_code == 0, done.output
    assert table(done.output)["reference answer"][1] == "3"


def test_an_own_reward_that_cannot_read_all_golds(reward_test: Callable[..., Result]) -> None:
    done = reward_test("rewards: own.py:integers\n")
    assert done.exit_code == 1
    assert table(done.output)["reference answer"] == ["0.375", "8", "rows 2, 3, 5, 6, 7"]
    assert "fault: integers: row 5: the reference answer 'B' scores 0, not 1" in done.output
    assert done.output.count("fault: ") == 5


@pytest.mark.parametrize(
    ("rewards", "status", "expected"),
    [
        ("own.py:generous", 1, "no reward scores reference answers above those of other rows"),
        ("[accuracy, own.py:never]", 1, "never: applies to no row"),
        ("[accuracy, own.py:trusting]", 1, "trusting: 10,000 characters scores more than 0 in rows 0, 1"),
        ("own.py:raises", 2, "'raises' raised ZeroDivisionError for row 7 of the batch (row_index 7,"),
        ("own.py:wrong", 2, "own.py has no 'wrong'"),
        ("[accuracy, accuracy]", 2, "two are called 'accuracy_reward'"),
        ("[accuracy, nowhere:f]", 2, "importing nowhere failed: ModuleNotFoundError"),
        ("[accuracy, format]\nreward_weights: [1.0]", 2, "reward_weights has 1 values ([1.0]) for 2 rewards"),
    ],
)
def test_what_is_wrong_is_said(reward_test: Callable[..., Result], rewards: str, status: int, expected: str) -> None:
    done = reward_test(f"rewards: {rewards}\n")
    assert done.exit_code == status, done.output
    assert expected in done.output + done.stderr


def test_exempting_a_reward_that_is_not_there(reward_test: Callable[..., Result]) -> None:
    done = reward_test("rewards: accuracy\n", "--exempt", "brevity")
    assert done.exit_code == 2
    assert "--exempt brevity: the recipe's rewards are ['accuracy_reward']" in done.stderr


@pytest.mark.process
def test_a_reward_that_hangs_ends_with_the_line_that_hangs(
    geometry: Path, write_recipe: Callable[[str], Path]
) -> None:
    script = (
        "import sys; from vgpo.rewards import trial; from vgpo.cli import main; trial.HANG_SECONDS = 1.0; "
        f"sys.argv = ['vgpo', 'reward', 'test', {str(write_recipe('rewards: own.py:hangs'))!r}, "
        f"'--train_data', {str(geometry)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert re.search(r'Timeout.*own\.py", line \d+ in hangs', done.stderr, re.DOTALL)


def test_training_asks_for_the_columns_of_its_rewards_before_it_loads_a_model(
    geometry: Path, write_recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "build_trainer", None)
    words = ["--config", write_recipe("rewards: [accuracy, own.py:wants_solution]"), "--train_data", geometry]
    done = CliRunner().invoke(app, ["train", *map(str, words), "--run_dir", str(geometry.parent / "run")])
    assert done.exit_code == 2
    assert "reward 'wants_solution' asks for 'solution', which is not a column of the dataset" in done.stderr


def test_a_set_in_the_form_of_mathvista(vista: Path) -> None:
    done = CliRunner().invoke(app, ["reward", "test", "quickstart_vgpo", "--train_data", str(vista)])
    assert done.exit_code == 0, done.output
    assert table(done.output)["reference answer"] == ["1.000", "10", "none"]


def test_the_embedded_recipe(toy_files: tuple[Path, Path]) -> None:
    words = ["reward", "test", "quickstart_vgpo", "--train_data", str(toy_files[0]), "--rows", "40"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert table(done.output)["reference answer"] == ["1.000", "40", "none"]


def test_golds_of_other_rows_differ() -> None:
    assert command.mismatched_references(["a", "A", "b", "a"]) == ["b", "b", "a", "b"]
    assert command.mismatched_references(["a", "a"]) == [None, None]
