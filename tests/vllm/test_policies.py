"""A checkpoint answers with vLLM as with transformers, also through a suite."""

from pathlib import Path

import pytest
from datasets import Dataset
from rich.console import Console

from vgpo.data import load_dataset, to_prompts
from vgpo.evaluation.benchmarks import own_task
from vgpo.evaluation.protocols import protocol_named
from vgpo.recipe.policies import Policy, open_checkpoint
from vgpo.suite.folder import EvaluationFolder
from vgpo.suite.run import SuiteRequest, evaluate_suite
from vgpo.toy import write_datasets

pytestmark = pytest.mark.slow
MAX_NEW_TOKENS = 96


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datasets(tmp_path_factory.mktemp("toy"), num_train=1, num_test=24, progress=False)[1]


@pytest.fixture(scope="module")
def prompts(data: Path) -> Dataset:
    return to_prompts(load_dataset(str(data)))


@pytest.fixture(scope="module")
def vllm() -> Policy:
    return open_checkpoint("toy", engine="vllm").policy()


def test_greedy_responses_are_those_of_transformers(vllm: Policy, prompts: Dataset) -> None:
    expected = open_checkpoint("toy").policy().complete(list(prompts), max_new_tokens=MAX_NEW_TOKENS)
    assert vllm.complete(list(prompts), max_new_tokens=MAX_NEW_TOKENS) == expected


def test_samples_follow_their_seeds(vllm: Policy, prompts: Dataset) -> None:
    rows = [prompts[0]] * 4
    first, second = (
        vllm.complete(rows, max_new_tokens=MAX_NEW_TOKENS, temperature=1.5, seeds=[1, 2, 3, 1]) for _ in range(2)
    )
    assert first == second
    assert first[0] == first[3]
    assert len({completion.text for completion in first}) > 1


def test_a_prompt_that_fills_the_context_is_not_asked(vllm: Policy, prompts: Dataset) -> None:
    long = {"prompt": [{"role": "user", "content": [{"type": "text", "text": "1 " * 1024}]}], "images": []}
    found = vllm.complete([long, prompts[0]], max_new_tokens=MAX_NEW_TOKENS)
    assert [(one.oversized, bool(one.text)) for one in found] == [(True, False), (False, True)]


def test_a_suite_answers_with_vllm(data: Path, tmp_path: Path, prompts: Dataset) -> None:
    scores, texts = {}, {}
    for engine in ("transformers", "vllm"):
        request = SuiteRequest(
            checkpoint="toy",
            benchmarks=[own_task("embedded")],
            data={"embedded": str(data)},
            protocol=protocol_named("papo-greedy"),
            out=tmp_path / engine,
            template="plain",
            max_new_tokens=MAX_NEW_TOKENS,
            engine=engine,
        )
        scores[engine] = evaluate_suite(request, Console(quiet=True))
        graded = EvaluationFolder(request.out).read_graded("embedded")
        texts[engine] = {answer.row: answer.completion for answer in graded}
    assert texts["vllm"] == texts["transformers"]
    assert scores["vllm"] == scores["transformers"]
