"""The command line answers at once."""

import subprocess
import sys
import time

import pytest

SHOW_IMPORTS = """
import sys
from vgpo.cli import main
sys.argv = ["vgpo", {words}]
try:
    main()
except SystemExit:
    print(*sys.modules)
"""


def modules_after(*words: str) -> set[str]:
    """Modules that are loaded once `vgpo WORDS` is done."""
    script = SHOW_IMPORTS.format(words=", ".join(map(repr, words)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [(), ("quickstart",), ("train",), ("eval",), ("inspect",), ("report",), ("watch",), ("compare",), ("toy",)],
)
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    loaded = modules_after(*command, "--help")
    assert "typer" in loaded
    assert not loaded & {"torch", "transformers", "trl", "datasets", "numpy", "PIL", "yaml"}


@pytest.mark.process
def test_help_takes_less_than_a_second() -> None:
    seconds = []
    for _ in range(3):  # the best of three: other processes may hold the machine
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "vgpo.cli", "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1
    for command in ("quickstart", "train", "eval", "inspect", "report", "watch", "compare", "toy"):
        assert command in done.stdout
