"""All twelve benchmarks in each published form, through the whole suite; scores are computed by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.evaluation.benchmark_files import CASES
from vgpo.evaluation.benchmark_rows import HUB, PAPO, REPO
from vgpo.evaluation.benchmarks import BENCHMARKS
from vgpo.evaluation.completions import Completion
from vgpo.evaluation.protocols import protocol_named
from vgpo.evaluation.scores import SuiteScores
from vgpo.recipe.policies import TransformersPolicy
from vgpo.suite.folder import EvaluationFolder
from vgpo.suite.run import SuiteRequest, evaluate_suite

# What is in the box of the response to a prompt that begins like this; otherwise B.
BOXES = {
    "Which colour?": "blue",
    "How wide?": "0.214",
    "How far?": "A",
    "Which?\nA. ①": "A",
    "Which?\nA) iron": "zinc",
    "Which?\nA. iron": "zinc",
    "Find $x$.": r"6\pi",
    "Which? (A) a dog": "A",
    "Which ones": "C, A",
    "How many": "4",
    "Compare": "2",
    "How long?": "0.5",
    "Is it even?": "A. even",
    "Which in": "down",
}
# Right answers, and rows, of each task under papo-greedy and lenient.
EXPECTED = {
    HUB: {
        "mathvista": (0, 2, 2),  # the option's text; 0.214 for 0.21 at two places
        "mathverse": (2, 2, 3),  # B for B, B, A
        "wemath": (1, 1, 2),
        "mmk12": (0, 1, 1),  # the option's text
        "geomath": (0, 0, 1),
        "geometry3k": (1, 1, 1),
        "logicvista": (1, 2, 3),  # a set in another order; a row without a question
        "counting": (1, 1, 1),
        "mmmu_pro": (1, 1, 1),
        "mathverse_v": (1, 1, 2),
        "mathvision": (1, 2, 2),  # the option's text
        "dynamath": (0, 1, 1),  # letter and text
    },
}
EXPECTED[REPO] = {**EXPECTED[HUB], "mmmu_pro": (0, 1, 1)}  # the setting with the question as text
EXPECTED[PAPO] = {
    "mathvista": (1, 1, 2),  # 0.214 for 0.21: PAPO-Eval's form has no number of places
    "mathverse": (1, 1, 2),
    "wemath": (1, 1, 1),
    "mmk12": (0, 1, 1),
    "geometry3k": (1, 1, 1),
    "logicvista": (1, 1, 1),
    "counting": (1, 1, 1),
    "mmmu_pro": (1, 1, 1),
    "mathverse_v": (1, 1, 1),
}
# Avg-Math, Avg-Vision and Overall: means of these shares.
AVERAGES = {
    HUB: {
        "papo-greedy": [(0 + 2 / 3 + 1 / 2 + 0 + 0 + 1) / 6, (1 / 3 + 1 + 1 + 1 / 2) / 4, 5 / 10],
        "lenient": [(1 + 2 / 3 + 1 / 2 + 1 + 0 + 1) / 6, (2 / 3 + 1 + 1 + 1 / 2) / 4, (25 / 6 + 19 / 6) / 10],
    },
    PAPO: {
        "papo-greedy": [(1 / 2 + 1 / 2 + 1 + 0 + 1) / 5, 1.0, 7 / 9],
        "lenient": [(1 / 2 + 1 / 2 + 1 + 1 + 1) / 5, 1.0, 8 / 9],
    },
}


def evaluated(form: str, folder: Path, **fields: Any) -> SuiteScores:
    cases = [case for case in CASES if case.form == form]
    data = {case.task: case.write(folder / case.task) for case in cases}
    request = SuiteRequest(
        checkpoint="toy",
        benchmarks=[BENCHMARKS[case.task] for case in cases],
        data=data,
        out=folder / "evaluation",
        **fields,
    )
    return evaluate_suite(request, Console(quiet=True))


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of all prompts from now on; the toy model answers with `BOXES`."""
    seen: list[str] = []

    def complete(self: TransformersPolicy, rows: Sequence[dict[str, Any]], **options: Any) -> list[Completion]:
        texts = ["".join(part.get("text", "") for part in row["prompt"][0]["content"]) for row in rows]
        seen.extend(texts)
        boxes = [next((box for start, box in BOXES.items() if text.startswith(start)), "B") for text in texts]
        return [Completion(rf"So it is \boxed{{{box}}}.", 9, 9, truncated=False) for box in boxes]

    monkeypatch.setattr(TransformersPolicy, "complete", complete)
    return seen


@pytest.mark.parametrize(
    ("form", "protocol"),
    [
        (HUB, "papo-greedy"),
        (HUB, "lenient"),
        (REPO, "papo-greedy"),
        pytest.param(REPO, "lenient", marks=pytest.mark.slow),
        (PAPO, "lenient"),
        pytest.param(PAPO, "papo-greedy", marks=pytest.mark.slow),
    ],
)
def test_scores_are_those_by_hand(form: str, protocol: str, tmp_path: Path, prompts: list[str]) -> None:
    scores = evaluated(form, tmp_path, protocol=protocol_named(protocol))
    place = ["papo-greedy", "lenient"].index(protocol)
    expected = {task: (counts[place], counts[2]) for task, counts in EXPECTED[form].items()}
    assert {task.task: (task.num_correct, task.num_scored) for task in scores.tasks} == expected
    if form in AVERAGES:
        assert [average.accuracy for average in scores.averages] == pytest.approx(AVERAGES[form][protocol])
    missing = ["geomath"] if form == PAPO else []
    assert [list(average.missing) for average in scores.averages] == [missing, [], missing]
    # Rows of PAPO-Eval have their instruction, and get no other one.
    assert all(("<think>" in prompt) == (form != PAPO) for prompt in prompts)
    assert all("\\boxed" in prompt for prompt in prompts)
    found = json.loads((tmp_path / "evaluation" / "scores.json").read_text())
    assert {task["protocol"] for task in found["tasks"]} == {protocol}


def test_the_embedded_model_answers_every_row_of_every_task(tmp_path: Path) -> None:
    scores = evaluated(HUB, tmp_path, protocol=protocol_named("papo-greedy"), max_new_tokens=4, batch_size=8)
    assert {task.task: task.num_scored for task in scores.tasks} == {
        task: counts[2] for task, counts in EXPECTED[HUB].items()
    }
    assert all(task.num_truncated == task.num_no_box == task.num_asked for task in scores.tasks)
    record = EvaluationFolder(tmp_path / "evaluation").read_record()
    assert {task.form for task in record.tasks.values()} == {HUB}
    assert record.tasks["logicvista"].dropped
