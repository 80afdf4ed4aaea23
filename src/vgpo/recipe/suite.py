"""Evaluation on benchmarks during training."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vgpo.evaluation.protocols import Protocol
from vgpo.evaluation.tasks import Task, evaluate_task
from vgpo.metric_names import suite_metric
from vgpo.policy.undisturbed import undisturbed
from vgpo.run import RunFolder
from vgpo.run.suite import write_suite
from vgpo.terminal import say
from vgpo.trl import VGPOTrainer


class EvaluateSuite(TrainerCallback):
    """Evaluates benchmarks every N steps and after the last one, without side effects on the training.

    Scores are logged as metrics and written into the run folder with all answers.

    Args:
        trainer: A single-process trainer.
        tasks: The tasks to evaluate.
        protocol: From `greedy_protocol`.
        every: Optimizer steps between two evaluations; None for only the end.
        folder: Run folder.
        console: Output for scores.
    """

    def __init__(
        self,
        trainer: VGPOTrainer,
        tasks: Sequence[Task],
        protocol: Protocol,
        *,
        every: int | None,
        folder: RunFolder,
        console: Console,
    ) -> None:
        self.trainer = trainer
        self.tasks = tasks
        self.protocol = protocol
        self.every = every
        self.folder = folder
        self.console = console

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step
        if step < state.max_steps and (self.every is None or step % self.every):
            return
        found = self._evaluate()
        write_suite(self.folder, step, {"protocol": self.protocol.name, "tasks": found})
        logs = {name: value for task, one in found.items() for name, value in suite_metrics(task, one["scores"])}
        # A separate control object: the training's still indicates whether the step is to be logged.
        self.trainer.callback_handler.on_log(args, state, TrainerControl(), logs)
        accuracies = ", ".join(f"{task} {one['scores']['accuracy']:.1%}" for task, one in found.items())
        say(self.console, f"step {step}, {self.protocol.name}: {accuracies}")

    def _evaluate(self) -> dict[str, Any]:
        """Scores and answers of each task."""
        config = self.trainer.args
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        found = {}
        with undisturbed(model), without_mixed_precision(model):
            for task in self.tasks:
                scores, graded = evaluate_task(
                    model,
                    self.trainer.processing_class,
                    task,
                    self.protocol,
                    batch_size=config.per_device_eval_batch_size,
                    max_new_tokens=config.max_completion_length,
                    chat_template_kwargs=config.chat_template_kwargs,
                    progress=not config.disable_tqdm,
                )
                found[task.benchmark.name] = {
                    "source": task.source,
                    "scores": dataclasses.asdict(scores),
                    "answers": [answer.model_dump() for answer in graded],
                }
        return found


def suite_metrics(task: str, scores: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Metric names and values for the scores of a task."""
    answers = max(scores["num_asked"] * scores["num_samples"], 1)
    yield suite_metric(task, "accuracy"), scores["accuracy"]
    yield suite_metric(task, "no_box"), scores["num_no_box"] / answers
    yield suite_metric(task, "truncated"), scores["num_truncated"] / answers


@contextmanager
def without_mixed_precision(model: nn.Module) -> Iterator[None]:
    """Inside the block, a model computes as when loaded by `vgpo eval`: accelerate's autocast is disabled.

    `unwrap_model(keep_fp32_wrapper=False)` would remove it permanently.
    """
    original = vars(model).get("_original_forward")
    if original is None:
        yield
        return
    wrapped = vars(model)["forward"]
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped
