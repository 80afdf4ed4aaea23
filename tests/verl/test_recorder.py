"""The run folder of a run on verl: checkpoints that every reader loads, and a resume that loses no line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vgpo.checkpoints import CheckpointError, CheckpointStore
from vgpo.recipe.loading import PlainCheckpoint, load_model
from vgpo.run import RunFolder
from vgpo.toy import checkpoint_path
from vgpo.training.alarms import AlarmError
from vgpo.verl.recipe import load_recipe
from vgpo.verl.recorder import Recorder


def recorder_of(folder: Path, **fields: str) -> Recorder:
    words = [word for name, value in fields.items() for word in (f"--{name}", value)]
    recipe = load_recipe("quickstart_vgpo", ["--host", "verl", "--run_dir", str(folder), *words])
    if not (folder / "config.yaml").exists():
        RunFolder.create(folder, recipe.fields, seed=0, command=["test"])
    return Recorder(recipe, ["test"])


def save_as_verl(folder: Path, step: int) -> Path:
    """What verl's worker writes: float32 weights beside a config that says bfloat16."""
    state = folder / "checkpoints" / "verl" / f"global_step_{step}"
    weights = state / "actor" / "huggingface"
    shutil.copytree(checkpoint_path(), weights)
    tensors = {name: tensor.float() for name, tensor in load_file(weights / "model.safetensors").items()}
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return state


def test_a_checkpoint_is_kept_as_any_program_reads_it(tmp_path):
    recorder = recorder_of(tmp_path / "run", save_strategy="steps")
    recorder.keep_checkpoint(4, save_as_verl(tmp_path / "run", 4), is_last=False)
    assert recorder.store.complete_steps() == [4]
    model = load_model(PlainCheckpoint(str(recorder.store.path(4))), trust_remote_code=False)
    assert model.dtype == torch.float32
    assert not recorder.folder.final_path.exists()


def test_the_last_checkpoint_is_final_too(tmp_path):
    recorder = recorder_of(tmp_path / "run", save_strategy="steps")
    recorder.keep_checkpoint(4, save_as_verl(tmp_path / "run", 4), is_last=True)
    assert CheckpointStore.verify(recorder.folder.final_path) is None
    assert recorder.store.complete_steps() == [4]


def test_a_run_that_saves_none_keeps_the_final_weights_alone(tmp_path):
    recorder = recorder_of(tmp_path / "run")
    recorder.keep_checkpoint(4, save_as_verl(tmp_path / "run", 4), is_last=True)
    assert [path.name for path in recorder.folder.checkpoints_path.iterdir()] == ["final"]


def test_older_checkpoints_go_as_the_limit_says(tmp_path):
    recorder = recorder_of(tmp_path / "run", save_strategy="steps", save_total_limit="1")
    for step in (1, 2):
        recorder.keep_checkpoint(step, save_as_verl(tmp_path / "run", step), is_last=False)
    assert recorder.store.steps() == [2]


def test_weights_that_are_not_there_name_the_shared_file_system(tmp_path):
    recorder = recorder_of(tmp_path / "run", save_strategy="steps")
    with pytest.raises(CheckpointError, match="run_dir on a file system that all machines have"):
        recorder.keep_checkpoint(1, tmp_path / "elsewhere", is_last=False)


def test_a_resume_keeps_the_line_of_the_step_that_was_saved(tmp_path):
    folder = tmp_path / "run"
    recorder = recorder_of(folder, save_strategy="steps")
    recorder.log(1, 0.1, {"loss": 1.0})
    state = save_as_verl(folder, 2)
    recorder.keep_checkpoint(2, state, is_last=False)  # verl saves before it logs
    recorder.num_tokens = 7
    recorder.log(2, 0.2, {"loss": 2.0})
    recorder.log(3, 0.3, {"loss": 3.0})
    resumed = recorder_of(folder, save_strategy="steps")
    resumed.resume(2, state)
    assert [line["step"] for line in resumed.folder.read_metrics()] == [1, 2]
    assert resumed.num_tokens == 7
    assert [one.step for one in resumed.folder.read_resumes()] == [2]


def test_a_run_that_was_killed_before_the_line_of_its_checkpoint_goes_on(tmp_path):
    folder = tmp_path / "run"
    recorder = recorder_of(folder, save_strategy="steps")
    recorder.log(1, 0.1, {"loss": 1.0})
    state = save_as_verl(folder, 2)
    recorder.keep_checkpoint(2, state, is_last=False)
    resumed = recorder_of(folder, save_strategy="steps")
    resumed.resume(2, state)
    assert [line["step"] for line in resumed.folder.read_metrics()] == [1]


def test_an_alarm_that_stops_is_an_error_after_its_line(tmp_path):
    recorder = recorder_of(tmp_path / "run", alarms="stop", alarm_lines="1", alarm_entropy="0.5")
    active = recorder.log(1, 0.1, {"entropy": 0.1})
    assert active == {"alarm/entropy_collapse": 1.0}
    assert recorder.folder.read_metrics()[0]["alarm/entropy_collapse"] == 1.0
    with pytest.raises(AlarmError, match="entropy_collapse"):
        recorder.check_alarms()


def test_held_out_questions_without_an_answer_count_as_wrong(tmp_path, caplog):
    recorder = recorder_of(tmp_path / "run")
    rows = [{"problem": "How many?", "answer": "3"}, {"problem": "How many?", "answer": "4"}]
    answer = json.dumps({"row": 0, "completion": "\\boxed{3}", "truncated": False})
    recorder.evaluate("before", rows, {"vgpo_answer": [answer]})
    scores = recorder.folder.read_evaluation()["before"]
    assert (scores["num_correct"], scores["num_questions"]) == (1, 2)
    assert "1 of 2 held-out questions have no answer" in caplog.text
