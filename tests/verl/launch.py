"""Runs of verl on this machine's CPU, from verl's own configuration."""

import tests.verl.cpu_platform  # isort: skip

import os
import shutil
import tempfile
from functools import partialmethod
from pathlib import Path
from typing import Any

import ray
import verl.trainer
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

from tests.verl import transformers_rollout

ROOT = Path(__file__).parents[2]
PRECISIONS = ("param_dtype", "reduce_dtype", "buffer_dtype")
# Threads of one process would only wait for the cores of the others.
VARIABLES = {
    **dict.fromkeys(("OMP_NUM_THREADS", "TQ_NUM_THREADS", "TQ_CLIENT_ZMQ_IO_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


def verl_config(overrides: list[str]) -> DictConfig:
    """verl's own configuration of its PPO trainer with `overrides` as on its command line."""
    folder = Path(verl.trainer.__file__).parent / "config"
    with initialize_config_dir(str(folder), version_base=None):
        return compose("ppo_trainer", overrides)


def run_on_cpu(config: DictConfig, task_runner_class: Any = TaskRunnerV1) -> None:
    """Run verl's trainer to its end in a Ray of its own, which is gone afterwards.

    Args:
        config: verl's, as a user writes it for GPUs. `adapt_to_cpu` changes what a CPU needs.
        task_runner_class: the Ray actor class that `run_ppo` takes.
    """
    adapt_to_cpu(config)
    validate_config(config, need_reference_policy(config), need_critic(config))
    scratch = tempfile.mkdtemp(prefix="ray_", dir="/tmp")  # short: Ray puts sockets there
    try:
        with open_dict(config):
            config.ray_kwargs.ray_init = ray_settings(config, scratch)
        run_ppo(config, polling_often(task_runner_class))
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def polling_often(task_runner_class: Any) -> Any:
    """The same task runner, whose trainer looks for finished responses ten times a second, not every two seconds."""

    class TaskRunner(task_runner_class.__ray_actor_class__):
        def run(self, config: DictConfig) -> None:
            from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

            ReplayBuffer.__init__ = partialmethod(ReplayBuffer.__init__, poll_interval=0.1)
            super().run(config)

    return ray.remote(TaskRunner)


def adapt_to_cpu(config: DictConfig) -> None:
    """Change, in place, what of a configuration needs a GPU, and how many processes there are of each kind."""
    num_workers = config.trainer.n_gpus_per_node * config.trainer.nnodes
    changes = {
        "trainer.device": "cpu",
        "trainer.use_v1": True,
        "actor_rollout_ref.model.use_remove_padding": False,
        "actor_rollout_ref.model.use_fused_kernels": False,
        "actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        "actor_rollout_ref.rollout.name": transformers_rollout.NAME,
        # One server for all workers.
        "actor_rollout_ref.rollout.tensor_model_parallel_size": num_workers,
        "actor_rollout_ref.rollout.agent.num_workers": 1,
        "reward.num_workers": 1,
        "data.dataloader_num_workers": 0,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "transfer_queue.backend.SimpleStorage.total_storage_size": 10_000,
    }
    for part in ("actor", "ref"):
        changes[f"actor_rollout_ref.{part}.strategy"] = "fsdp2"
        changes[f"actor_rollout_ref.{part}.use_torch_compile"] = False
        changes[f"actor_rollout_ref.{part}.fsdp_config.use_torch_compile"] = False
        changes[f"actor_rollout_ref.{part}.fsdp_config.mixed_precision"] = dict.fromkeys(PRECISIONS, "fp32")
    with open_dict(config):
        for name, value in changes.items():
            OmegaConf.update(config, name, value, force_add=True)


def ray_settings(config: DictConfig, scratch: str) -> dict[str, Any]:
    """Arguments of `ray.init`. The GPUs are numbers that Ray hands out; there is no such device."""
    num_workers = config.trainer.n_gpus_per_node * config.trainer.nnodes
    paths = [ROOT, *map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))]
    modules = [tests.verl.cpu_platform.__name__, transformers_rollout.__name__]
    loaded = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": ",".join(modules)}
    wanted = {**VARIABLES, **loaded, "PYTHONPATH": os.pathsep.join(str(path.resolve()) for path in paths)}
    settings: dict[str, Any] = OmegaConf.to_container(config.ray_kwargs.get("ray_init", OmegaConf.create({})))
    environment = settings.get("runtime_env", {}).get("env_vars", {})
    return {
        **settings,
        "num_cpus": 3 * num_workers + 2,  # three are reserved for each worker
        "num_gpus": num_workers,
        "object_store_memory": 256 * 2**20,
        "include_dashboard": False,
        "_temp_dir": scratch,
        "runtime_env": {**settings.get("runtime_env", {}), "env_vars": {**wanted, **environment}},
    }
