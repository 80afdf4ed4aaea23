"""The run folder of a run on verl: the same files as of a run on TRL, written by verl's driver."""

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vgpo.checkpoints import MANIFEST, CheckpointError, CheckpointStore, put_in_place, seal
from vgpo.evaluation.accuracy import answer_of, grade_answers
from vgpo.evaluation.completions import Completion
from vgpo.metric_names import ALARM_PREFIX
from vgpo.report.live import LiveReport
from vgpo.run import RunFolder, folder_state, resume_folder
from vgpo.run.folder import SUMMARY
from vgpo.run.records import FolderState
from vgpo.run.storage import read_object, to_json, write_file
from vgpo.training.alarms import AlarmError, Alarms
from vgpo.training.settings import AlarmSettings, settings_from
from vgpo.verl.config import VerlRecipe
from vgpo.verl.dataset import processor_of_recipe
from vgpo.verl.rewards import ANSWER

logger = logging.getLogger(__name__)

STATE = "vgpo.json"  # in a checkpoint of verl's


class Recorder:
    """Writes metrics, rollouts, evaluations and plain checkpoints of a run; its steps are optimizer steps.

    Args:
        recipe: of the run.
        command: the words of the command line, for the record of a resume.
    """

    def __init__(self, recipe: VerlRecipe, command: Sequence[str]) -> None:
        self.recipe = recipe
        self.command = command
        self.folder = RunFolder(Path(recipe.run.run_dir), recipe.run.max_rollout_bytes)
        self.store = CheckpointStore(self.folder.checkpoints_path, keep=recipe.arguments.save_total_limit)
        self.alarms = Alarms(settings_from(AlarmSettings, recipe.method))
        self.report = LiveReport(self.folder)
        self.num_groups = 0
        self.num_tokens = 0
        self.started = time.monotonic()
        self._unfinished: Path | None = None  # a checkpoint whose step is not logged yet

    def open(self) -> None:
        """Create the run folder, unless the launcher did; verl's own command does not."""
        if not self.folder.config_path.is_file():
            settings = {**self.recipe.fields, "accuracy_reward": self.recipe.accuracy_reward}
            RunFolder.create(self.folder.path, settings, seed=self.recipe.arguments.seed, command=self.command)

    # Metrics and evaluation

    def log(self, step: int, epoch: float, metrics: Mapping[str, float]) -> dict[str, float]:
        """Append a line to metrics.jsonl, and return its alarms.

        Raises:
            AlarmError: an alarm ends the run (`alarms: stop`).
        """
        active = dict.fromkeys((ALARM_PREFIX + name for name in self.alarms.update(step, metrics, self.store)), 1.0)
        self.folder.log_metrics({"step": step, "epoch": epoch, "time": time.time(), **metrics, **active})
        self.complete_checkpoint()  # verl saves before it logs
        self.report.keep_fresh()
        return active

    def finish(self, step: int, epoch: float) -> None:
        """Append the last line of a run that has trained to its end."""
        summary = {SUMMARY: time.monotonic() - self.started}
        self.folder.log_metrics({"step": step, "epoch": epoch, "time": time.time(), **summary})

    def check_alarms(self) -> None:
        """End the run if an alarm says so.

        Raises:
            AlarmError: it does.
        """
        if self.alarms.stopping:
            raise AlarmError("\n".join(self.alarms.stopping))

    def evaluate(self, when: str, rows: Any, infos: Mapping[str, Sequence[Any]]) -> None:
        """Grade the answers to held-out questions as `vgpo eval` does; one that was not asked counts as wrong.

        Args:
            when: before or after training.
            rows: the held-out set.
            infos: verl's reward information, by name, a value for each rollout.
        """
        found = [json.loads(text) for text in infos.get(ANSWER, ()) if text is not None]
        by_row = {answer["row"]: answer for answer in found}
        nothing = {"completion": "", "truncated": False}
        answers = []
        for index, row in enumerate(rows):
            given = by_row.get(index, nothing)
            completion = Completion(given["completion"], 0, 0, truncated=given["truncated"])
            answers.append(answer_of(row, completion))
        if len(by_row) < len(answers):
            logger.warning(
                "%s of %s held-out questions have no answer and count as wrong; verl's log says why ('Error in "
                "_run_prompt').", len(answers) - len(by_row), len(answers),
            )  # fmt: skip
        evaluation = grade_answers(answers)
        logger.warning("%s: %s", when, evaluation)
        known = self.folder.read_evaluation() or {}
        self.folder.write_evaluation({**known, when: dataclasses.asdict(evaluation)})

    # Checkpoints

    def keep_checkpoint(self, step: int, state_folder: Path, *, is_last: bool) -> None:
        """Keep the weights of a checkpoint of verl's as every program reads them: `checkpoint-N` and `final`.

        Args:
            step: optimizer steps so far.
            state_folder: verl's folder of the checkpoint, which loses its plain weights.
            is_last: whether the run ends with it.
        """
        weights = state_folder / "actor" / "huggingface"
        check_weights(weights)
        processor_of_recipe(self.recipe).save_pretrained(weights)  # with the pixel limits of the run
        name_dtype(weights)
        is_alone = is_last and self.recipe.arguments.save_strategy == "no"
        if not is_alone:
            staging = self.store.begin(step)
            move_files(weights, staging)
            kept = self.store.commit(step)
            self.folder.write_saved(step)
        else:
            kept = weights
        if is_last:
            self._write_final(step, kept)
        if is_alone:
            shutil.rmtree(self.folder.checkpoints_path / "verl", ignore_errors=True)
        else:
            self._unfinished = state_folder

    def is_saved(self, step: int) -> bool:
        """Whether the checkpoint of a step is there."""
        return step in self.store.steps()

    def complete_checkpoint(self) -> None:
        """Complete a checkpoint of verl's with what the run folder holds after its step."""
        if self._unfinished is None:
            return
        state = {
            "folder": folder_state(self.folder).model_dump(),
            "alarms": self.alarms.state(),
            "num_groups": self.num_groups,
            "num_tokens": self.num_tokens,
        }
        write_file(self._unfinished / STATE, to_json(state) + b"\n")
        self._unfinished = None
        self._prune_states()

    def _prune_states(self) -> None:
        """Remove states of verl's whose checkpoint has gone: verl forgets those from before a resume."""
        kept = {step // int(self.recipe.plan.updates) for step in self.store.steps()}
        for folder in (self.folder.checkpoints_path / "verl").glob("global_step_*"):
            if int(folder.name.removeprefix("global_step_")) not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _write_final(self, step: int, weights: Path) -> None:
        final = self.folder.final_path
        partial = final.with_name(".saving-final")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(weights, partial, ignore=shutil.ignore_patterns(MANIFEST))
        seal(partial, step)
        shutil.rmtree(put_in_place(partial, final), ignore_errors=True)

    def resume(self, step: int, state_folder: Path | None) -> None:
        """Take the run folder back to a checkpoint of verl's, or to its start where there is none.

        A run that was killed between the checkpoint and its log line resumes without the state of its alarms.

        Raises:
            RunFolderError: writing failed, or what the checkpoint says about its run folder is damaged.
        """
        state = read_object(state_folder / STATE) if state_folder and (state_folder / STATE).exists() else {}
        known = FolderState(**state["folder"]) if state else None
        resume_folder(self.folder, step, known, seed=self.recipe.arguments.seed, command=self.command)
        if state:
            self.alarms.load_state(state["alarms"])
            self.num_groups, self.num_tokens = state["num_groups"], state["num_tokens"]


def check_weights(folder: Path) -> None:
    """Whether verl's worker has written weights where this process sees them.

    Raises:
        CheckpointError: it does not.
    """
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds no weights: the worker that wrote them is on another machine, or verl is configured not "
            "to write them. Put run_dir on a file system that all machines have under the same path, and keep "
            "hf_model in actor_rollout_ref.actor.checkpoint.save_contents."
        )


def name_dtype(folder: Path) -> None:
    """Let config.json name the dtype of the saved weights: verl's always says bfloat16."""
    path = folder / "config.json"
    if not path.exists():  # adapters
        return
    config = read_object(path)
    with safe_open(next(folder.glob("*.safetensors")), "pt") as weights:
        dtype = str(weights.get_tensor(next(iter(weights.keys()))).dtype).removeprefix("torch.")
    parts = [config, *(part for part in config.values() if isinstance(part, dict) and "dtype" in part)]
    for part in parts:
        part["dtype"] = dtype
    write_file(path, json.dumps(config, indent=2).encode("utf-8") + b"\n")


def move_files(source: Path, target: Path) -> None:
    """Move what is in a folder into another one."""
    for file in source.iterdir():
        shutil.move(str(file), target / file.name)
