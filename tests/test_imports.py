"""The equations, the shapings and the recorder need torch only: they run beside a trainer other than TRL's."""

import subprocess
import sys

import pytest

BLOCKED = ("trl", "transformers", "accelerate", "peft", "datasets")
SCRIPT = f"""
import sys
sys.modules.update(dict.fromkeys({BLOCKED}))  # `import NAME` raises ImportError
import {{module}}
print("torch" in sys.modules)
"""


@pytest.mark.process
@pytest.mark.parametrize("module", ["vgpo.equations", "vgpo.shaping", "vgpo.focus"])
def test_imports_without_trl_and_transformers(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(module=module)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"
