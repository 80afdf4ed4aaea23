"""Benchmarks during training: fields of a recipe, when they are evaluated, and that the training does not notice."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vgpo.evaluation.benchmarks import BENCHMARKS
from vgpo.evaluation.tasks import evaluate_task, load_task
from vgpo.recipe import suite
from vgpo.recipe.checks import examine
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import PlainCheckpoint, load_model, load_processor
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.run_plan import check_launch
from vgpo.recipe.setup import Setup
from vgpo.recipe.suite import EvaluateSuite, without_mixed_precision
from vgpo.recipe.suite_settings import greedy_protocol, suite_benchmarks, suite_sources
from vgpo.recipe.train import train
from vgpo.run import RunFolder
from vgpo.run.suite import suite_files

RUN = """
num_generations: 4
per_device_train_batch_size: 8
max_completion_length: 24
max_steps: 4
learning_rate: 1.0e-3
logging_steps: 1
save_strategy: steps
save_steps: 2
log_rollouts_steps: 0
disable_tqdm: true
"""
SUITE = """
eval_suite: [geomath]
eval_suite_data: {geomath: TEST}
eval_suite_steps: 3
eval_suite_limit: 6
"""
# They are wall-clock times.
TIMED = re.compile("time|train_.*second|train_runtime")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("eval_suite_steps: 4", "eval_suite_steps has no effect without eval_suite"),
        ("eval_suite_protocol: lenient", "eval_suite_protocol has no effect without eval_suite"),
        ("eval_suite_data: folder", "eval_suite_data has no effect without eval_suite"),
        ("eval_suite: [mathvist]", "eval_suite: there is no task 'mathvist' (did you mean 'mathvista'?)"),
        ("{eval_suite: [vgpo], eval_suite_limit: 0}", "eval_suite_limit is 0, expected at least 1"),
        ("{eval_suite: [vgpo], eval_suite_steps: 0}", "eval_suite_steps is 0, expected at least 1"),
        (
            "{eval_suite: [vgpo], eval_suite_data: {mathvista: 3}}",
            "eval_suite_data: expected a folder, or a source for",
        ),
        ("{eval_suite: [vgpo], eval_suite_protocol: lenien}", "eval_suite_protocol: there is no protocol 'lenien'"),
        ("{eval_suite: [vgpo], eval_suite_protocol: papo-avg@8}", "papo-avg@8 samples 8 answers to each question"),
    ],
)
def test_a_wrong_field_is_named(write_recipe: Callable[[str], Path], lines: str, message: str) -> None:
    if lines.startswith("{"):
        lines = lines[1:-1].replace(", eval_suite_", "\neval_suite_")
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(write_recipe(lines))


def test_suites_and_tasks_can_be_mixed(write_recipe: Callable[[str], Path]) -> None:
    run = load_recipe(write_recipe("eval_suite: vgpo-vision"), ["--eval_suite_data", '{"mmk12": "x.parquet"}']).run
    names = [benchmark.name for benchmark in suite_benchmarks(run.eval_suite)]
    assert names == ["logicvista", "counting", "mmmu_pro", "mathverse_v"]
    assert suite_sources(run.eval_suite_data) == {"mmk12": "x.parquet"}
    mixed = suite_benchmarks(["mathvision", "vgpo-vision", "counting"])
    assert [benchmark.name for benchmark in mixed] == ["mathvision", *names]
    assert suite_sources("folder") == "folder"


def test_several_processes_are_refused(write_recipe: Callable[[str], Path]) -> None:
    run = load_recipe(write_recipe("eval_suite: vgpo")).run
    check_launch(run, 1)
    with pytest.raises(RecipeError, match="eval_suite is for runs of one process"):
        check_launch(run, 2)


@pytest.mark.parametrize(("every", "expected"), [(None, [10]), (3, [3, 6, 9, 10]), (5, [5, 10]), (20, [10])], ids=str)
def test_it_is_evaluated_after_every_so_many_steps_and_the_last(
    monkeypatch: pytest.MonkeyPatch, every: int | None, expected: list[int]
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(EvaluateSuite, "_evaluate", lambda self: {})
    monkeypatch.setattr(suite, "write_suite", lambda folder, step, evaluation: steps.append(step))
    trainer: Any = SimpleNamespace(callback_handler=SimpleNamespace(on_log=lambda *args: None))
    protocol = greedy_protocol("papo-greedy")
    callback = EvaluateSuite(trainer, [], protocol, every=every, folder=None, console=suite.Console(quiet=True))
    for step in range(1, 11):
        callback.on_step_end(None, SimpleNamespace(global_step=step, max_steps=10), None)
    assert steps == expected


class Doubling(nn.Module):
    def forward(self, value: int) -> int:
        return 2 * value


def test_autocast_is_put_aside_and_back() -> None:
    model = Doubling()
    with without_mixed_precision(model):
        assert model(2) == 4
    assert "forward" not in vars(model)
    model._original_forward = model.forward  # as accelerate does it
    model.forward = wrapped = lambda value: -1
    with without_mixed_precision(model):
        assert model(2) == 4
    assert model.forward is wrapped
    with pytest.raises(TypeError, match="NoneType"), without_mixed_precision(model):
        model(None)
    assert model.forward is wrapped
    assert model._original_forward(2) == 4


def trained(
    write_recipe: Callable[[str], Path], files: tuple[Path, Path], name: str, lines: str, *words: str
) -> RunFolder:
    """The run folder `name` of a training with these lines in its recipe."""
    path = write_recipe(RUN + lines.replace("TEST", str(files[1])) + f"train_data: {files[0]}\n")
    folder = path.parent / name
    train(load_recipe(path, ["--run_dir", str(folder), *words]), command=["vgpo"])
    return RunFolder.open(folder)


def untimed(folder: RunFolder) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if not TIMED.search(name)} for line in folder.read_metrics()]


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.final_path / "model.safetensors")


@pytest.mark.train
def test_a_training_goes_as_without_it_and_a_resumed_one_too(
    write_recipe: Callable[[str], Path], toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(write_recipe, toy_files, "plain", "")
    evaluated = trained(write_recipe, toy_files, "evaluated", SUITE)
    lines = untimed(evaluated)
    suite_lines = [line for line in lines if "eval_suite/geomath/accuracy" in line]
    assert [line["step"] for line in suite_lines] == [3, 4]
    assert [line for line in lines if line not in suite_lines] == untimed(plain)
    expected = weights(plain)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(evaluated).items())

    files = suite_files(evaluated)
    assert list(files) == [3, 4]
    found = json.loads(files[4].read_text())
    task = found["tasks"]["geomath"]
    assert (found["step"], found["protocol"], len(task["answers"])) == (4, "papo-greedy", 6)
    assert task["scores"]["accuracy"] == suite_lines[1]["eval_suite/geomath/accuracy"]
    rows = [
        [answer["row"] for answer in json.loads(path.read_text())["tasks"]["geomath"]["answers"]]
        for path in files.values()
    ]
    assert rows[0] == rows[1] != list(range(6))

    # A run that dies in the second evaluation continues from step 2, and repeats the first.
    evaluate, calls = suite.evaluate_task, []

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(suite, "evaluate_task", fail_once)
    with pytest.raises(RuntimeError, match="out of memory"):
        trained(write_recipe, toy_files, "resumed", SUITE)
    (write_recipe("").parent / "resumed" / "eval_suite" / "step-2.json").write_text("{")  # what a bad disk leaves
    resumed = trained(write_recipe, toy_files, "resumed", SUITE, "--resume", "true")
    assert len(calls) == 4
    assert untimed(resumed) == lines
    assert {step: path.read_text() for step, path in suite_files(resumed).items()} == {
        step: path.read_text() for step, path in files.items()
    }


@pytest.mark.train
def test_a_model_in_mixed_precision_answers_as_its_saved_weights_do(
    write_recipe: Callable[[str], Path], toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, wrapped = EvaluateSuite._evaluate, []

    def evaluate(self: EvaluateSuite) -> dict[str, Any]:
        model = vars(self.trainer.model)
        forward = model["forward"]
        found = inner(self)
        wrapped.append(model["forward"] is forward is not model["_original_forward"])
        return found

    monkeypatch.setattr(EvaluateSuite, "_evaluate", evaluate)
    words = ["--bf16", "true", "--gradient_checkpointing", "true", "--max_steps", "3"]
    run = trained(write_recipe, toy_files, "run", SUITE, *words)
    assert wrapped == [True]
    found = json.loads(suite_files(run)[3].read_text())["tasks"]["geomath"]["answers"]
    saved = PlainCheckpoint(str(run.final_path))
    processor = load_processor(saved, trust_remote_code=False, min_pixels=None, max_pixels=None)
    _, graded = evaluate_task(
        load_model(saved, trust_remote_code=False),
        processor,
        load_task(BENCHMARKS["geomath"], str(toy_files[1]), template="plain", limit=6),
        greedy_protocol("papo-greedy"),
        batch_size=8,
        max_new_tokens=24,
        progress=False,
    )
    assert [answer["completion"] for answer in found] == [answer.completion for answer in graded]


@pytest.mark.train
def test_other_benchmarks_are_another_run(write_recipe: Callable[[str], Path], toy_files: tuple[Path, Path]) -> None:
    trained(write_recipe, toy_files, "run", SUITE, "--max_steps", "2")
    words = ["--resume", "true", "--max_steps", "4"]
    with pytest.raises(RecipeError, match=r"benchmarks was .*protocol.*papo-greedy"):
        trained(write_recipe, toy_files, "run", SUITE.replace("limit: 6", "limit: 5"), *words)


def test_doctor_counts_the_rows_and_finds_their_images_in_the_training_set(
    write_recipe: Callable[[str], Path], toy_files: tuple[Path, Path], tmp_path: Path
) -> None:
    lines = SUITE.replace("TEST", str(toy_files[0])) + f"train_data: {toy_files[0]}\n"
    setup = Setup(load_recipe(write_recipe(lines)), tmp_path)
    finding = examine("benchmarks", setup, {})
    assert (finding.status, finding.found) == ("pass", "6 rows of GeoMath, graded by papo-greedy")
    finding = examine("evaluation images", setup, {})
    assert finding.status == "warn"
    assert finding.found.startswith("eval_suite geomath: 6 of 6 questions have an image of the training set")
    setup = Setup(load_recipe(write_recipe("eval_suite: [geomath]")), tmp_path)
    assert examine("benchmarks", setup, {}).status == "fail"
    assert examine("benchmarks", Setup(load_recipe(write_recipe("")), tmp_path), {}).found == "none (eval_suite)"


def test_the_model_of_the_trainer_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode, gradients and random numbers: what `undisturbed` keeps is what the evaluation is made in."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    model[0].weight.grad = gradient = torch.ones(2, 2)
    seen: list[Any] = []

    def evaluate(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append((model.training, model[0].weight.grad, torch.is_grad_enabled()))
        torch.rand(5)
        raise RuntimeError

    monkeypatch.setattr(suite, "evaluate_task", evaluate)
    config = SimpleNamespace(
        per_device_eval_batch_size=1, max_completion_length=1, chat_template_kwargs=None, disable_tqdm=True
    )
    trainer: Any = SimpleNamespace(
        args=config,
        model=model,
        processing_class=None,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
    )
    callback = EvaluateSuite(
        trainer, [None], greedy_protocol("lenient"), every=1, folder=None, console=suite.Console(quiet=True)
    )
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with pytest.raises(RuntimeError):
        callback._evaluate()
    assert seen == [(False, None, False)]
    assert model.training
    assert model[0].weight.grad is gradient
    assert torch.equal(torch.rand(1), expected)
