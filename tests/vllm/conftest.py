"""The real vLLM on a CPU. `make test-vllm` installs it; without it, what needs it is not collected.

What only a CPU needs is here and not in the package: eager execution spares a compiler, and linear layers that oneDNN
has repacked cannot load weights again.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HAS_VLLM = importlib.util.find_spec("vllm") is not None
if not HAS_VLLM:
    collect_ignore = ["test_offline.py", "test_colocate.py", "test_policies.py", "test_server.py"]
else:
    ENVIRONMENT = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)

TOY_LENGTH = 512  # tokens of prompt and response


@pytest.fixture(scope="session", autouse=True)
def _on_a_cpu() -> None:
    if not HAS_VLLM:
        return
    import vllm
    from trl.generation import vllm_generation
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False
    vllm.LLM = vllm_generation.LLM = functools.partial(vllm.LLM, enforce_eager=True)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Any]:
    """A trainer of the toy model whose rollouts come from vLLM."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vgpo.data import load_dataset, to_prompts
    from vgpo.rewards import accuracy_reward
    from vgpo.toy import checkpoint_path, write_datasets
    from vgpo.trl import VGPOConfig, VGPOTrainer

    def make(
        rows: int = 32,
        max_steps: int = 1,
        callbacks: list[Any] | None = None,
        peft_config: Any = None,
        **settings: Any,
    ) -> VGPOTrainer:
        source = write_datasets(tmp_path / "set", num_train=rows, num_test=1)[0]
        config = VGPOConfig(
            output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, report_to=[], save_strategy="no",
            disable_tqdm=True, logging_steps=1, max_steps=max_steps, learning_rate=1e-4, num_generations=8,
            per_device_train_batch_size=16, gradient_accumulation_steps=1, max_completion_length=40,
            gradient_checkpointing=False, dataloader_pin_memory=False, use_vllm=True, vllm_gpu_memory_utilization=0.05,
            vllm_max_model_length=TOY_LENGTH, **settings,
        )  # fmt: skip
        return VGPOTrainer(
            model=AutoModelForImageTextToText.from_pretrained(checkpoint_path(), dtype="float32"),
            reward_funcs=accuracy_reward,
            args=config,
            train_dataset=to_prompts(load_dataset(str(source))),
            processing_class=AutoProcessor.from_pretrained(checkpoint_path(), padding_side="left"),
            callbacks=callbacks,
            peft_config=peft_config,
        )

    return make
