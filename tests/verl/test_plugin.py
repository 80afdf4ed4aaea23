"""The plug-in registers the trainers of vgpo in a process that verl's own command starts, and costs others nothing."""

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

CHECK = """
import sys
import verl
assert "vgpo.verl.trainer" not in sys.modules, "imported too early"
assert "vgpo.verl.plugin" in sys.modules, "no plug-in was loaded"
from verl.trainer.ppo.v1 import get_trainer_cls
print(get_trainer_cls("vgpo_sync").__name__)
"""


def run(variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VERL_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK], env=environment | variables, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.process
def test_a_module_that_the_environment_names_registers_the_trainers():
    variables = {"VERL_USE_EXTERNAL_MODULES": "vgpo.verl.plugin", "VERL_USE_EXTERNAL_PLUGINS": "none"}
    assert run(variables)[-1] == "VGPOTrainerSync"


@pytest.mark.process
@pytest.mark.skipif("vgpo" not in entry_points(group="verl.plugins").names, reason="needs an installed vgpo")
def test_the_entry_point_registers_the_trainers():
    assert run({})[-1] == "VGPOTrainerSync"
