"""The end of a run on verl, without verl."""

from pathlib import Path

import pytest

from vgpo.checkpoints.store import seal
from vgpo.run import RunFolder, RunFolderError
from vgpo.verl import closing
from vgpo.verl.closing import finish_run


@pytest.fixture
def trained(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run", {"host": "verl"}, seed=0, command=[])
    folder.log_metrics({"step": 3, "epoch": 0.5, "loss": 0.1})
    folder.log_metrics({"step": 3, "epoch": 0.75, "train_runtime": 1.0})
    return folder


def save_final(folder: RunFolder) -> None:
    folder.final_path.mkdir(parents=True)
    (folder.final_path / "model.safetensors").write_text("weights")
    seal(folder.final_path, 3)


def test_a_finished_run_is_marked_reported_and_names_its_weights(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_final(trained)
    monkeypatch.chdir(trained.path.parent)
    finish_run(trained)
    assert capsys.readouterr().out.splitlines() == ["weights: run/checkpoints/final", "report: run/report.html"]
    assert "<html" in trained.report_path.read_text()
    found = trained.read_finished()
    assert (found.step, found.epoch) == (3, 0.75)


def test_a_run_without_its_weights_is_not_finished(trained: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFolderError, match=r"final is not complete .*`vgpo export .* OUT --which last` takes"):
        finish_run(trained)
    save_final(trained)
    (trained.final_path / "model.safetensors").write_text("cut")
    with pytest.raises(RunFolderError, match=r"final is not complete \(.*model\.safetensors"):
        finish_run(trained)
    assert not trained.finished_path.exists()
    assert capsys.readouterr().out == ""


def test_a_report_that_cannot_be_drawn_does_not_cost_the_run(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_final(trained)
    monkeypatch.setattr(closing, "write_report", lambda *_: 1 / 0)
    finish_run(trained)
    assert trained.finished_path.exists()
    assert f"`vgpo report {trained.path}` draws it" in caplog.text
