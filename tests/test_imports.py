"""The core needs torch only, and the ground not even that: they run beside a trainer other than TRL's."""

import subprocess
import sys

import pytest

HEAVY = ("trl", "transformers", "accelerate", "peft", "datasets")
SCRIPT = """
import sys
sys.modules.update(dict.fromkeys({blocked}))  # `import NAME` raises ImportError
import {module}
"""


def imports_without(module: str, blocked: tuple[str, ...]) -> None:
    script = SCRIPT.format(module=module, blocked=blocked)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    "module", ["vgpo.equations", "vgpo.shaping", "vgpo.focus", "vgpo.training.signals", "vgpo.training.settings"]
)
def test_the_core_imports_torch_and_nothing_heavier(module: str) -> None:
    imports_without(module, HEAVY)


@pytest.mark.process
@pytest.mark.parametrize(
    "module",
    [
        "vgpo",
        "vgpo.answers",
        "vgpo.evaluation.benchmarks",
        "vgpo.media",
        "vgpo.metric_names",
        "vgpo.settings_checks",
    ],
)
def test_the_ground_imports_no_torch(module: str) -> None:
    imports_without(module, (*HEAVY, "torch", "numpy"))


@pytest.mark.process
def test_what_inspect_ai_imports_in_each_of_its_commands_loads_no_torch() -> None:
    imports_without("vgpo.suite.registry", (*HEAVY, "torch"))
