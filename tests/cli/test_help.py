"""The command line answers at once."""

import os
import resource
import subprocess
import sys

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
    [
        (),
        ("quickstart",),
        ("train",),
        ("eval",),
        ("inspect",),
        ("focus-check",),
        ("report",),
        ("watch",),
        ("compare",),
        ("merge",),
        ("export",),
        ("toy",),
        ("recipes",),
    ],
)
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    loaded = modules_after(*command, "--help")
    assert "typer" in loaded
    assert not loaded & {"torch", "transformers", "trl", "datasets", "numpy", "PIL", "yaml"}


def invoke(*words: str, **environment: str) -> tuple[float, str]:
    """CPU seconds and output of `vgpo WORDS`; other processes that hold the machine do not add to CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "vgpo.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


@pytest.mark.process
def test_help_takes_less_than_a_second() -> None:
    seconds, shown = invoke("--help")
    assert seconds < 1
    for command in ("quickstart", "train", "eval", "inspect", "report", "watch", "compare", "merge", "export", "toy"):
        assert command in shown
    assert "vgpo --install-completion" in shown


@pytest.mark.process
def test_fields_and_packaged_files_are_listed_without_torch() -> None:
    seconds, shown = invoke("train", "--help-fields", "tail-ratio")
    assert shown.splitlines()[0] == "tail_ratio: float, default 0.5 (vgpo)"
    assert seconds < 1.5
    assert "torch" not in modules_after("recipes", "show", "quickstart_vgpo")


@pytest.mark.process
def test_a_shell_completes_commands() -> None:
    _, shown = invoke(_VGPO_COMPLETE="complete_bash", COMP_WORDS="vgpo qui", COMP_CWORD="1")
    assert shown.split() == ["quickstart"]
