"""A run over several processes, from the start or resumed, written down as each process knows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed
import transformers.trainer
from accelerate import state
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.cli import sharded_cli
from tests.trl.tiny import GROUP, coin, rows_with_pictures
from vgpo.checkpoints import CheckpointError, weight_hash
from vgpo.toy import checkpoint_path
from vgpo.training.resuming import run_on_main_process
from vgpo.trl import VGPOConfig, VGPOTrainer

SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "report_to": [],
    "learning_rate": 1e-4,
    "num_generations": GROUP,
    "per_device_train_batch_size": GROUP,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 4,
    "max_completion_length": 6,
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 1,
    "log_rollouts_steps": 1,
}


class NotingTrainer(VGPOTrainer):
    """Keeps what this process trains on."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self.trained_on: list[dict[str, Any]] = vars(self).get("trained_on", [])
        names = ("row_index", "completion_ids", "scalar_advantages", "rewards")
        self.trained_on.append({"step": self.state.global_step + 1, **{name: inputs[name].tolist() for name in names}})
        return super()._compute_loss(model, inputs)


def train(folder: Path, checkpoint: Path | None, settings: dict[str, Any]) -> None:
    """Run, and write what this process knows: the hash of the weights that it holds, the log, and its rollouts.

    Args:
        folder: for checkpoints, and a JSON file by each process.
        checkpoint: what to resume from.
        settings: `lora`, and fields of the configuration.
    """
    lora, settings = settings.get("lora"), {name: value for name, value in settings.items() if name != "lora"}
    if settings.get("fsdp"):
        state.PartialState.__init__ = sharded_cli.start
    records: list[dict[str, Any]] = []
    trainer = NotingTrainer(
        model=AutoModelForImageTextToText.from_pretrained(checkpoint_path()),
        processing_class=AutoProcessor.from_pretrained(checkpoint_path(), padding_side="left"),
        reward_funcs=coin,
        args=VGPOConfig(output_dir=str(folder), **{**SETTINGS, **settings}),
        train_dataset=rows_with_pictures(12),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if lora else None,
        rollout_writer=lambda written, images: records.extend(record.model_dump() for record in written),
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    found = {
        "sharded": trainer.is_fsdp_enabled,
        "parity": {gap.name: gap.passes for gap in trainer.check_parity().gaps},
        "weights": weight_hash(trainer.model.named_parameters()),
        "log": trainer.state.log_history,
        "records": records,
        "trained_on": trainer.trained_on,
    }
    (folder / f"process-{torch.distributed.get_rank()}.json").write_text(json.dumps(found))


def fail_on_the_main_process(folder: Path) -> None:
    """Write down the error that each process gets for a failure of the main one."""

    def fail() -> None:
        raise KeyError("the reason")

    state.PartialState(cpu=True)
    try:
        run_on_main_process(fail)
    except (KeyError, CheckpointError) as error:
        (folder / f"heard-{torch.distributed.get_rank()}").write_text(repr(error))


def train_without_loading(folder: Path, checkpoint: Path, settings: dict[str, Any]) -> None:
    """As `train`, where the sharded weights of the checkpoint do not reach the model."""
    transformers.trainer.load_fsdp_model = lambda *args, **kwargs: None
    train(folder, checkpoint, settings)
