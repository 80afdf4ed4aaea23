"""A random model of the toy family, a few images, and a trainer over them that runs in a second or two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from tests.trl.tiny import GROUP, coin, rows_with_pictures
from vgpo.toy.model import build_model, build_processor
from vgpo.trl import VGPOConfig, VGPOTrainer


@pytest.fixture(scope="session")
def processor() -> Qwen2_5_VLProcessor:
    return build_processor()


@pytest.fixture
def model(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    return build_model(processor.tokenizer, seed=1)


@pytest.fixture
def make_trainer(
    tmp_path: Path, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor
) -> Callable[..., VGPOTrainer]:
    def make(
        trainer_class: type = VGPOTrainer,
        config_class: type = VGPOConfig,
        dataset: Dataset | None = None,
        reward: Callable[..., list[float]] = coin,
        policy: torch.nn.Module = model,
        trainer_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> VGPOTrainer:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_steps": 1,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2 * GROUP,
            "gradient_accumulation_steps": 1,
            "num_generations": GROUP,
            "max_completion_length": 6,
            "gradient_checkpointing": False,
            "bf16": False,
            "dataloader_pin_memory": False,
        }
        if issubclass(config_class, VGPOConfig):
            defaults["parity"] = "off"  # tests here count passes
        return trainer_class(
            model=policy,
            reward_funcs=reward,
            args=config_class(**{**defaults, **settings}),
            train_dataset=rows_with_pictures() if dataset is None else dataset,
            processing_class=processor,
            **(trainer_kwargs or {}),
        )

    return make
