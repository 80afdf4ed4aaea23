#!/usr/bin/env python3
"""Runs the notebooks of docs/notebooks, each in an empty folder: `.venv-docs/bin/python .ci/run_notebooks.py`.

The files stay without outputs. A cell that fails ends the program with its traceback and status 1.
"""

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"
TIMEOUT = 120  # seconds of one cell


def main() -> None:
    """Run all notebooks and print the seconds of each."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        started = time.monotonic()
        try:
            run(path)
        except CellExecutionError as error:
            sys.exit(f"{path.name}: {error}")
        print(f"{path.name}: {time.monotonic() - started:.0f} s")


def run(path: Path) -> None:
    """Run the cells of a notebook in a kernel of its own."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": scratch}}).execute()


if __name__ == "__main__":
    main()
