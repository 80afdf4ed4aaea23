"""`report_to: tensorboard` with the default installation: metrics, rollouts and images in its event file."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from tests.cli import even_sum
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.train import train

SETTINGS = f"""
rewards: ["{Path(even_sum.__file__)}:even_sum"]
report_to: tensorboard
num_generations: 4
per_device_train_batch_size: 4
max_completion_length: 12
max_steps: 2
logging_steps: 1
log_rollouts_steps: 1
save_strategy: "no"
disable_tqdm: true
"""


@pytest.mark.train
def test_an_event_file_that_cannot_be_written_does_not_cost_the_run(
    tmp_path: Path,
    toy_files: tuple[Path, Path],
    write_recipe: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("add_scalar", "add_image"):
        monkeypatch.setattr(SummaryWriter, name, refuse)
    words = ["--train_data", str(toy_files[0]), "--run_dir", str(tmp_path / "run")]
    run = train(load_recipe(write_recipe(SETTINGS), words), command=["vgpo", "train"])
    assert run.folder.read_finished().step == 2
    assert len([line for line in run.folder.read_metrics() if "reward" in line]) == 2
    warned = [record.getMessage() for record in caplog.records if "No space left" in record.getMessage()]
    # Twice in two steps, but once each.
    names = sorted(line.split(" failed: ")[0] for line in warned)
    assert names == ["TensorBoardCallback", "TensorBoardCallback (rollouts)"]


@pytest.mark.train
def test_two_steps_are_found_in_the_event_file(
    tmp_path: Path, toy_files: tuple[Path, Path], write_recipe: Callable[[str], Path]
) -> None:
    path = write_recipe(SETTINGS)
    words = ["--train_data", str(toy_files[0]), "--run_dir", str(tmp_path / "run")]
    run = train(load_recipe(path, words), command=["vgpo", "train"])
    (file,) = run.folder.path.rglob("events.out.tfevents.*")
    found = EventAccumulator(str(file), size_guidance={"images": 0, "tensors": 0}).Reload()
    names = {"train/reward", "train/focus/mean", "train/loss", "train/grad_norm", "train/rewards/even_sum/mean"}
    assert names <= set(found.Tags()["scalars"])
    lines = [line for line in run.folder.read_metrics() if "reward" in line]
    for name in ("reward", "focus/mean"):
        logged = [(event.step, round(event.value, 5)) for event in found.Scalars(f"train/{name}")]
        assert logged == [(line["step"], round(line[name], 5)) for line in lines]
    rollouts = list(run.folder.read_rollouts())
    assert len(rollouts) == 2 * 4
    texts = found.Tensors("rollouts/0/text_summary")
    assert [event.step for event in texts] == [1, 2]
    assert rollouts[0].problem in texts[0].tensor_proto.string_val[0].decode()
    assert [event.step for event in found.Images("rollouts/image 0")] == [1, 2]
    # Generation with vLLM was not asked for.
    assert "vllm" not in sys.modules
