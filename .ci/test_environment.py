#!/usr/bin/env python3
"""Tests the package as users install it: `.ci/test_environment.py wheel`, `oldest` or `newest`.

Builds the wheel, installs it into an environment of its own (`.venv-wheel` and so on), runs a short `vgpo quickstart`
in an empty folder and then the tests against the installed package. A run without a failure gets a row in
docs/tested_versions.md. The environment is removed afterwards, unless KEEP=1. Needs a package registry.
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
# Which tests run: those without training, and the few trainings that show whether an installation works.
TESTS = {"wheel": "smoke", "oldest": "fast or smoke", "newest": "fast or smoke"}
# As in the Makefile.
WORKERS = ("-q", "--numprocesses=logical", "--maxprocesses=4", "--dist=loadfile", "--no-loadscope-reorder")
LISTED = ("torch", "torchvision", "transformers", "trl", "accelerate", "peft", "datasets")
VERSIONS = f"""
import json, platform
from importlib.metadata import version
print(json.dumps([platform.python_version(), *map(version, {LISTED})]))
"""


def main() -> None:
    """Build, install, test and write the row; exit with a status other than 0 where anything fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("environment", choices=TESTS)
    environment = parser.parse_args().environment
    folder = ROOT / f".venv-{environment}"
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            install(environment, folder, Path(scratch))
            counts = run_tests(TESTS[environment], folder, Path(scratch) / "junit.xml")
            cells = json.loads(run([python_of(folder), "-c", VERSIONS], folder, capture=True))
    finally:
        if os.environ.get("KEEP") != "1":
            shutil.rmtree(folder, ignore_errors=True)
    minutes = f"{(time.monotonic() - started) / 60:.0f}"
    row = [environment, date.today().isoformat(), commit(), *cells, *map(str, counts), minutes]
    PAGE.write_text(with_row(PAGE.read_text(), row))
    print(f"{environment}: {counts[0]} passed, 0 failed, {counts[1]} skipped; row written to {PAGE.relative_to(ROOT)}")


def install(environment: str, folder: Path, scratch: Path) -> None:
    """Install the wheel with its plain dependencies, try it in an empty folder, and add what the tests need."""
    run([sys.executable, "-m", "venv", folder], folder)
    pip = [python_of(folder), "-m", "pip"]
    run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch, ROOT], folder)
    wheel = next(scratch.glob("vgpo-*.whl"))
    constraints = scratch / "constraints.txt"
    constraints.write_text("\n".join(lower_bounds()) if environment == "oldest" else "")
    run([*pip, "install", "--quiet", "--constraint", constraints, wheel], folder)
    empty = scratch / "empty"
    empty.mkdir()
    run([folder / "bin" / "vgpo", "quickstart", "--max-steps", "2", "--num-questions", "8"], folder, cwd=empty)
    run([*pip, "install", "--quiet", "--constraint", constraints, f"{wheel}[dev]"], folder)


def run_tests(expression: str, folder: Path, report: Path) -> tuple[int, int]:
    """Run the tests that a marker expression selects; return how many passed and were skipped."""
    run([python_of(folder), "-m", "pytest", *WORKERS, "-m", expression, f"--junitxml={report}"], folder)
    suite = ElementTree.parse(report).getroot()[0]
    skipped = int(suite.attrib["skipped"])
    return int(suite.attrib["tests"]) - skipped, skipped


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
    rows = {key_of(line): line for line in page.splitlines() if re.match(r"\| (wheel|oldest|newest) ", line)}
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
