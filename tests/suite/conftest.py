"""Two benchmarks of the toy task, with references that the toy model is known to give or to miss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from vgpo.data import load_dataset, to_prompts
from vgpo.evaluation.benchmarks import BENCHMARKS
from vgpo.evaluation.protocols import protocol_named
from vgpo.recipe.policies import open_checkpoint
from vgpo.suite.run import SuiteRequest
from vgpo.toy import write_datasets

TASKS = ("geometry3k", "counting")
NUM_ROWS = 6
MAX_NEW_TOKENS = 96


@pytest.fixture(scope="session")
def completions(tmp_path_factory: pytest.TempPathFactory) -> tuple[datasets.Dataset, list[str]]:
    """Questions of the toy task, and what the toy model says, asked one by one and without inspect-ai."""
    file = write_datasets(tmp_path_factory.mktemp("toy"), num_train=1, num_test=2 * NUM_ROWS, progress=False)[1]
    rows = load_dataset(str(file))
    policy = open_checkpoint("toy").policy()
    answers = [policy.complete([row], max_new_tokens=MAX_NEW_TOKENS)[0].text for row in to_prompts(rows)]
    return rows, answers


@pytest.fixture
def folder(tmp_path: Path, completions: tuple[datasets.Dataset, list[str]]) -> Path:
    """A folder with a file for each of `TASKS`: of the rows of a task, the first four have the model's answer as
    reference, the next another one."""
    rows, answers = completions
    place = tmp_path / "data"
    place.mkdir()
    for number, task in enumerate(TASKS):
        chosen = rows.select(range(number * NUM_ROWS, (number + 1) * NUM_ROWS))
        boxed = [answer.rpartition("{")[2].rstrip("}") for answer in answers[number * NUM_ROWS :][:NUM_ROWS]]
        references = [box if place_ < 4 else box + "7" for place_, box in enumerate(boxed)]
        columns = {"images": chosen["images"], "problem": chosen["problem"], "answer": references}
        features = datasets.Features(
            images=chosen.features["images"], problem=datasets.Value("string"), answer=datasets.Value("string")
        )
        datasets.Dataset.from_dict(columns, features=features).to_parquet(place / f"{task}.parquet")
    return place


@pytest.fixture
def request_for(folder: Path, tmp_path: Path) -> Callable[..., SuiteRequest]:
    """A request to evaluate the toy model on `TASKS`; fields can be given."""

    def make(**fields: Any) -> SuiteRequest:
        protocol = protocol_named(fields.pop("protocol", "papo-greedy"))
        tasks = fields.pop("tasks", TASKS)
        given = {
            "checkpoint": "toy",
            "data": str(folder),
            "out": tmp_path / "evaluation",
            "template": "plain",
            "max_new_tokens": MAX_NEW_TOKENS,
            "batch_size": 4,
            **fields,
        }
        return SuiteRequest(benchmarks=[BENCHMARKS[task] for task in tasks], protocol=protocol, **given)

    return make
