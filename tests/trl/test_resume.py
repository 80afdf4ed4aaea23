"""A run that is stopped at any step and resumed is, bit for bit, the run that was never stopped."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from tests.trl.tiny import GROUP, coin, rows_with_pictures, told
from vgpo.checkpoints import CheckpointError, CheckpointStore, weight_hash
from vgpo.toy import checkpoint_path
from vgpo.training.records import RolloutRecord
from vgpo.training.resuming import run_on_main_process
from vgpo.trl import VGPOConfig, VGPOTrainer

STEPS = 8
STOPS = (1, 3, 6)  # the first step, during a generation's updates, and the end of an epoch of most cases
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "report_to": [],
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "num_generations": GROUP,
    "per_device_train_batch_size": GROUP,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 6,
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 1,
    "log_rollouts_steps": 1,
}
# What differs between the runs: where the windows of a generation end, and what is carried across steps.
CASES = {
    "one update a generation": {},
    "four updates a generation": {"steps_per_generation": 4},
    "two passes over a generation": {"steps_per_generation": 2, "num_iterations": 2},
    "accumulated": {"gradient_accumulation_steps": 2, "steps_per_generation": 4},
    "dynamic sampling": {"dynamic_sampling": True, "steps_per_generation": 4},
    "logged every third step": {"logging_steps": 3, "steps_per_generation": 4},
    "earned strength": {
        "shaping": "adaptive",
        "shaping_options": {"stratum_column": "answer", "correlation_rate": 0.5},
        "steps_per_generation": 4,
    },
    "behind black patches": {"shaping": "kl_perception", "steps_per_generation": 4},
    "growing in with training": {"shaping": "pepo", "steps_per_generation": 4},
    "groups across micro-batches": {"per_device_train_batch_size": GROUP // 2, "steps_per_generation": 4},
    "micro-batches of one row": {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": GROUP,
        "steps_per_generation": 4 * GROUP,
    },
    "micro-batches of two groups": {"per_device_train_batch_size": 2 * GROUP, "steps_per_generation": 2},
    "frozen tower": {"freeze": ["vision", "projector"], "steps_per_generation": 4},
}


def stop(case: str, step: int) -> Any:
    """A case and where it stops: `make test` has each case with one stop, and one case with each stop."""
    sampled = step == 3 or case == "two passes over a generation"
    marks = [pytest.mark.train] if sampled else [pytest.mark.slow]
    if (case, step) == ("four updates a generation", 3):
        marks.append(pytest.mark.smoke)
    return pytest.param(case, step, marks=marks, id=f"{case}-{step}")


def build(folder: Path, rollouts: list[RolloutRecord], *, lora: bool = False, **settings: Any) -> VGPOTrainer:
    return VGPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(checkpoint_path()),
        processing_class=AutoProcessor.from_pretrained(checkpoint_path(), padding_side="left"),
        reward_funcs=coin,
        args=VGPOConfig(output_dir=str(folder), **{**SETTINGS, **settings}),
        train_dataset=rows_with_pictures(6),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if lora else None,
        rollout_writer=lambda records, images: rollouts.extend(records),
    )


@pytest.fixture(scope="module")
def whole_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[VGPOTrainer, list[RolloutRecord], Path]]:
    """The run of a case that nothing interrupts, with a checkpoint of each step."""
    runs: dict[str, Any] = {}

    def run(case: str, **settings: Any) -> tuple[VGPOTrainer, list[RolloutRecord], Path]:
        if case not in runs:
            folder, rollouts = tmp_path_factory.mktemp("whole"), []
            trainer = build(folder, rollouts, **settings)
            trainer.train()
            runs[case] = trainer, rollouts, folder
        return runs[case]

    return run


def resumed_run(tmp_path: Path, whole: Path, step: int, **settings: Any) -> tuple[VGPOTrainer, list[RolloutRecord]]:
    """The run that continues from the checkpoint of a step, in a process that knows nothing of the one before."""
    shutil.copytree(whole / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    torch.manual_seed(1234)
    rollouts: list[RolloutRecord] = []
    trainer = build(tmp_path, rollouts, **settings)
    with torch.no_grad():  # what a load leaves out must show
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    trainer.train(resume_from_checkpoint=True)
    return trainer, rollouts


@pytest.mark.parametrize(("case", "step"), [stop(case, step) for case in CASES for step in STOPS])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    tmp_path: Path, whole_run: Callable[..., Any], case: str, step: int
) -> None:
    whole, rollouts, folder = whole_run(case, **CASES[case])
    resumed, later_rollouts = resumed_run(tmp_path, folder, step, **CASES[case])
    assert weight_hash(resumed.model.named_parameters()) == weight_hash(whole.model.named_parameters())
    assert told(resumed.state.log_history) == told(whole.state.log_history)
    assert later_rollouts == [record for record in rollouts if record.step > step]


@pytest.mark.train
def test_settings_of_the_optimizer_that_were_changed_hold(tmp_path: Path, whole_run: Callable[..., Any]) -> None:
    whole, _, folder = whole_run("one update a generation")
    rate = SETTINGS["learning_rate"]
    resumed, _ = resumed_run(tmp_path, folder, 3, learning_rate=3 * rate, weight_decay=0.1)
    rates = [[line["learning_rate"] for line in told(run.state.log_history)[:STEPS]] for run in (whole, resumed)]
    assert rates[1] == pytest.approx([*rates[0][:3], *(3 * rate for rate in rates[0][3:])])
    assert {group["weight_decay"] for group in resumed.optimizer.param_groups} == {0.0, 0.1}


@pytest.mark.train
def test_adapters_are_resumed_too(tmp_path: Path, whole_run: Callable[..., Any]) -> None:
    settings = {"lora": True, "steps_per_generation": 4}
    whole, rollouts, folder = whole_run("adapters", **settings)
    resumed, later_rollouts = resumed_run(tmp_path, folder, 3, **settings)
    assert weight_hash(resumed.model.named_parameters()) == weight_hash(whole.model.named_parameters())
    assert later_rollouts == [record for record in rollouts if record.step > 3]


@pytest.mark.train
def test_weights_of_two_kinds_are_resumed(tmp_path: Path) -> None:
    def train(folder: Path, checkpoint: Path | None) -> VGPOTrainer:
        trainer = build(folder, [], max_steps=2, freeze=["vision", "projector"])
        trainer.model.get_encoder(modality="image").bfloat16()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return trainer

    whole = train(tmp_path / "whole", None)
    resumed = train(tmp_path / "resumed", tmp_path / "whole/checkpoint-1")
    assert {weight.dtype for weight in resumed.model.parameters()} == {torch.bfloat16, torch.float32}
    assert weight_hash(resumed.model.named_parameters()) == weight_hash(whole.model.named_parameters())


@pytest.mark.train
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps_per_generation": 2}, "steps_per_generation was 4, is 2"),
        ({"steps_per_generation": 4, "num_iterations": 2}, "num_iterations was 1, is 2"),
        ({"steps_per_generation": 4, "dynamic_sampling": True}, "dynamic_sampling was False, is True"),
    ],
    ids=str,
)
def test_rollouts_that_wait_are_not_cut_in_another_way(
    tmp_path: Path, whole_run: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    _, _, folder = whole_run("four updates a generation", **CASES["four updates a generation"])
    with pytest.raises(CheckpointError, match=f"checkpoint-3 holds the rows and rollouts.*{message}"):
        resumed_run(tmp_path, folder, 3, **settings)


@pytest.mark.train
def test_weights_alone_are_not_resumed(tmp_path: Path) -> None:
    build(tmp_path, [], max_steps=1, save_only_model=True).train()
    with pytest.raises(
        CheckpointError, match=r"checkpoint-1 was saved with save_only_model=True.*name it as the model"
    ):
        build(tmp_path, []).train(resume_from_checkpoint=True)


def test_what_the_main_process_fails_with_is_raised() -> None:
    def fail() -> None:
        raise KeyError("what it fails with")

    with pytest.raises(KeyError, match="what it fails with"):
        run_on_main_process(fail)


@pytest.mark.train
def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_named(
    tmp_path: Path, whole_run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    whole, _, folder = whole_run("one update a generation")
    shutil.copytree(folder / "checkpoint-3", tmp_path / "checkpoint-3")
    shutil.copytree(folder / "checkpoint-4", tmp_path / "checkpoint-4")
    weights = tmp_path / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    trainer = build(tmp_path, [])
    logging.enable_propagation()
    trainer.train(resume_from_checkpoint=True)
    logging.disable_propagation()
    assert "Checkpoint checkpoint-4 is skipped: model.safetensors has" in caplog.text
    assert weight_hash(trainer.model.named_parameters()) == weight_hash(whole.model.named_parameters())


@pytest.mark.train
@pytest.mark.parametrize(
    ("steps", "settings"),
    [(STEPS, {}), (6, {}), (STEPS, {"logging_steps": 3})],
    ids=["in an epoch", "at the end of an epoch", "with figures that are not logged yet"],
)
def test_a_run_that_is_over_trains_no_further_step(
    tmp_path: Path, whole_run: Callable[..., Any], steps: int, settings: dict[str, Any]
) -> None:
    whole, _, folder = whole_run(f"{steps} steps, {settings}", max_steps=steps, **settings)
    resumed, rollouts = resumed_run(tmp_path, folder, steps, max_steps=steps, **settings)
    assert resumed.state.global_step == steps
    assert told(resumed.state.log_history) == told(whole.state.log_history)
    assert not rollouts
    assert weight_hash(resumed.model.named_parameters()) == weight_hash(whole.model.named_parameters())


def test_a_named_checkpoint_must_be_whole(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoint-1 cannot be resumed: manifest.json is missing"):
        build(tmp_path, []).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    with pytest.raises(CheckpointError, match="holds no usable checkpoint"):
        build(tmp_path, []).train(resume_from_checkpoint=True)


@pytest.mark.train
def test_weights_that_are_not_all_loaded_are_refused(
    tmp_path: Path, whole_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, folder = whole_run("one update a generation")
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, *args, **kwargs: None)
    with pytest.raises(CheckpointError, match="the trained weights are not those that were saved"):
        resumed_run(tmp_path, folder, 3)


@pytest.mark.train
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, whole_run: Callable[..., Any]) -> None:
    _, _, folder = whole_run("one update a generation")
    trainer = build(tmp_path, [])
    trainer.model.register_parameter("one_more", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(CheckpointError, match="does not hold the weights of this model: missing: one_more"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1"))


@pytest.mark.train
def test_another_number_of_processes_is_refused(tmp_path: Path, whole_run: Callable[..., Any]) -> None:
    _, _, folder = whole_run("one update a generation")
    staging = CheckpointStore(tmp_path, keep=None).begin(1)
    shutil.copytree(folder / "checkpoint-1", staging, dirs_exist_ok=True)
    shutil.copy(staging / "step_state_0.pt", staging / "step_state_1.pt")
    CheckpointStore(tmp_path, keep=None).commit(1)
    with pytest.raises(CheckpointError, match=r"was saved by 2 process\(es\), and 1 resume it"):
        build(tmp_path, []).train(resume_from_checkpoint=True)


def test_a_reference_that_moves_is_no_run_to_resume(tmp_path: Path) -> None:
    trainer = build(tmp_path, [])
    trainer.args.sync_ref_model = True
    with pytest.raises(CheckpointError, match="sync_ref_model changes the reference model"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.train
def test_a_checkpoint_stays_one_of_the_hub_format(whole_run: Callable[..., Any]) -> None:
    whole, _, folder = whole_run("one update a generation")
    model, report = AutoModelForImageTextToText.from_pretrained(
        folder / f"checkpoint-{STEPS}", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert weight_hash(model.named_parameters()) == weight_hash(whole.model.named_parameters())


@pytest.mark.train
def test_a_save_that_fails_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(tmp_path, [])
    save = trainer.step_state

    def full_disk() -> dict[str, Any]:
        if trainer.state.global_step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save()

    monkeypatch.setattr(trainer, "step_state", full_disk)
    with pytest.raises(CheckpointError, match=r"checkpoint-3 could not be saved.*No space left.*checkpoint-2"):
        trainer.train()
    assert trainer.checkpoints.newest_valid().step == 2
    assert not list(tmp_path.glob(".saving*"))
