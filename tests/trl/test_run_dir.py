"""A trainer that is made in Python leaves the same folder as `vgpo train`."""

from pathlib import Path

import pytest

from vgpo.report.watched import WatchedRun
from vgpo.run import RunFolder, RunFolderError


@pytest.mark.train
def test_a_trainer_with_a_run_dir_leaves_a_run_folder_and_its_report(make_trainer, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    make_trainer(trainer_kwargs={"run_dir": str(place)}, log_rollouts_steps=1).train()
    folder = RunFolder.open(place)
    assert [line["step"] for line in folder.read_metrics() if "reward" in line] == [1, 2]
    assert {record.step for record in folder.read_rollouts()} == {1, 2}
    assert folder.read_environment().seed == folder.read_config()["seed"]
    assert folder.read_config()["accuracy_reward"] == "coin"
    assert "<html" in folder.report_path.read_text()
    watched = WatchedRun(place)
    watched.read()
    assert watched.over
    with pytest.raises(RunFolderError, match="already contains a run"):
        make_trainer(trainer_kwargs={"run_dir": str(place)}, output_dir=str(tmp_path / "second")).train()


@pytest.mark.train
def test_a_resumed_training_continues_its_run_folder(make_trainer, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    saving = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(place / "checkpoints")}
    make_trainer(trainer_kwargs={"run_dir": str(place)}, **saving).train()
    make_trainer(trainer_kwargs={"run_dir": str(place)}, **saving, max_steps=3).train(
        resume_from_checkpoint=str(place / "checkpoints" / "checkpoint-1")
    )
    folder = RunFolder.open(place)
    assert [line["step"] for line in folder.read_metrics() if "reward" in line] == [1, 2, 3]
    assert [resumed.step for resumed in folder.read_resumes()] == [1]
