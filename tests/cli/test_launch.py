"""`accelerate launch` with the package's configurations: two processes on a CPU, and the files for GPUs as read."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from tests.cli import even_sum, sharded_cli
from vgpo.recipe.files import recipe_folder
from vgpo.recipe.recipe import load_recipe
from vgpo.run import RunFolder
from vgpo.toy import checkpoint_path, write_datasets

ACCELERATE = recipe_folder() / "accelerate"
START = re.compile(
    r"^# .*accelerate launch --config_file recipes/accelerate/(\S+) .*-m vgpo\.cli train --config (\S+)$"
)
RECIPE = """
model_name_or_path: toy
rewards: [{reward}]
num_processes: 2
num_generations: 4
per_device_train_batch_size: 4
max_completion_length: 12
max_steps: 2
optim: sgd
learning_rate: 0.05
dtype: float32
use_cpu: true
bf16: false
gradient_checkpointing: false
dataloader_pin_memory: false
logging_steps: 1
log_rollouts_steps: 0
save_strategy: "no"
"""
REPLICATED = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_machines": 1}
ON_TWO_CPUS = {"num_processes": 2, "main_process_port": 0, "mixed_precision": "no"}


def start_lines() -> dict[str, tuple[str, str]]:
    """The accelerate file and the recipe in the start line of each recipe that has one."""
    lines = [(path.stem, line) for path in recipe_folder().glob("*.yaml") for line in path.read_text().splitlines()]
    return {name: match.groups() for name, line in lines if (match := START.match(line))}


@pytest.mark.parametrize("name", sorted(start_lines()))
def test_a_start_line_fits_its_recipe_and_its_configuration(name: str) -> None:
    file, recipe_path = start_lines()[name]
    recipe = load_recipe(recipe_folder() / f"{name}.yaml", ["--use_cpu", "true"])
    config = ClusterConfig.from_yaml_file(str(ACCELERATE / file))
    assert recipe_path == f"recipes/{name}.yaml"
    assert config.num_processes == recipe.run.num_processes
    assert (config.mixed_precision == "bf16") == recipe.config.bf16
    # Sharding is said in one place, and so is activation checkpointing.
    assert not recipe.config.fsdp
    assert recipe.config.gradient_checkpointing
    assert not config.fsdp_config.get("fsdp_activation_checkpointing", False)


def test_every_configuration_is_used() -> None:
    used = {file for file, _ in start_lines().values()}
    assert used == {path.name for path in ACCELERATE.iterdir()}
    assert len(start_lines()) == 6


@pytest.mark.parametrize(("file", "num_machines"), [("fsdp2_8_gpus.yaml", 1), ("fsdp2_4_nodes.yaml", 4)])
def test_a_sharding_configuration_is_what_accelerate_makes_of_it(file: str, num_machines: int) -> None:
    path = str(ACCELERATE / file)
    assert ClusterConfig.from_yaml_file(path).distributed_type == DistributedType.FSDP
    words = ["--config_file", path, "--machine_rank", "3", "--main_process_ip", "host", "-m", "vgpo.cli"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert args.use_fsdp
    assert (args.num_machines, args.num_processes, args.machine_rank) == (num_machines, 8 * num_machines, 3)
    assert (args.fsdp_version, args.fsdp_auto_wrap_policy) == (2, "TRANSFORMER_BASED_WRAP")
    # Any other type, and the trainer's save_model writes no weights.
    assert args.fsdp_state_dict_type == "FULL_STATE_DICT"


def launch(folder: Path, configuration: dict[str, Any], command: list[str]) -> tuple[RunFolder, str]:
    """Two steps of the toy model by two processes: what they leave, and what they print."""
    folder.mkdir()
    data, _ = write_datasets(folder / "data", num_train=16, num_test=1, progress=False)
    (folder / "accelerate.yaml").write_text(yaml.safe_dump({**configuration, **ON_TWO_CPUS}))
    reward = f"{Path(even_sum.__file__)}:even_sum"
    (folder / "recipe.yaml").write_text(RECIPE.format(reward=reward))
    words = ["train", "--config", "recipe.yaml", "--train_data", str(data), "--run_dir", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate.yaml", *command, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "processes               2" in done.stdout
    return RunFolder.open(folder / "run"), done.stdout


@pytest.mark.slow
def test_sharded_processes_train_as_replicated_ones_do(tmp_path: Path) -> None:
    replicated, _ = launch(tmp_path / "replicated", REPLICATED, ["-m", "vgpo.cli"])
    shipped = yaml.safe_load((ACCELERATE / "fsdp2_8_gpus.yaml").read_text())
    sharded, printed = launch(tmp_path / "sharded", shipped, [str(Path(sharded_cli.__file__))])
    assert printed.count(sharded_cli.SHARDED) == 2

    lines = [[line for line in folder.read_metrics() if "reward" in line] for folder in (replicated, sharded)]
    assert [line["step"] for line in lines[0]] == [1, 2]
    for expected, actual in zip(*lines, strict=True):
        for name in ("reward", "loss", "grad_norm", "focus/mean", "completions/mean_length"):
            assert actual[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    assert all(line["grad_norm"] > 0 for line in lines[0])

    expected, actual = (
        load_file(folder.checkpoints_path / "final" / "model.safetensors") for folder in (replicated, sharded)
    )
    start = load_file(checkpoint_path() / "model.safetensors")
    assert max(float((weight - start[name]).abs().max()) for name, weight in expected.items()) > 1e-4
    for name, weight in expected.items():
        assert float((weight - actual[name]).abs().max()) < 1e-5, name
