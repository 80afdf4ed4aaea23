"""Everything that only a GPU can show, in a fixed order: checks, kernels, steps, a model of real size, a training.

    python benchmarks/gpu_battery.py --out FOLDER [--rows 1,2] [--timeout 600] [--study "vgpo compare ..."]

Each measurement is a separate command, which is stopped after `--timeout` seconds; the next one runs whether it
passed or not. FOLDER gets a JSON file for each: machine, command, status, seconds, figures, results, and the end of
its output. The same command again runs what has not passed yet. The table at the end shows all files of FOLDER.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the file may be run as a script
from benchmarks import record

ROOT = Path(__file__).resolve().parents[1]
PASSED = "passed"
KEPT_CHARACTERS = 12_000  # of what a measurement prints
STUDY_ROW = 6
SCRATCH = "<scratch>"  # in a command, a folder that is deleted when it ends


@dataclass(frozen=True)
class Measurement:
    """A row of the battery, or a part of one.

    Args:
        row: its place in the battery.
        name: of its file.
        command: what runs, in the root of the repository.
        tiny: what is added, or takes its place, for a test on a CPU.
        has_json: whether it takes `--json FILE`.
    """

    row: int
    name: str
    command: tuple[str, ...]
    tiny: tuple[str, ...]
    has_json: bool = False


def benchmark(row: int, name: str, script: str, *words: str, on_cuda: tuple[str, ...] = ()) -> Measurement:
    """A script of this folder; `on_cuda` has words that only a GPU can follow."""
    command = (sys.executable, f"benchmarks/{script}.py", *words)
    return Measurement(
        row, name, (*command, *on_cuda, "--device", "cuda"), (*command, "--device", "cpu", "--tiny"), True
    )


def measurements(study: str | None) -> list[Measurement]:
    """In the order in which they are worth their time."""
    pytest = (sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider")
    quickstart = (sys.executable, "-m", "vgpo.cli", "quickstart", "--out", f"{SCRATCH}/quickstart")
    rows = [
        Measurement(1, "correctness", pytest, (*pytest, "tests/equations")),
        benchmark(2, "reweighting", "reweighting"),
        benchmark(3, "steps", "step", "--steps", "3"),
        benchmark(3, "micro_batches", "step", "--steps", "3", "--micro-batches", "8", "4", "2", "1"),
        benchmark(3, "flash_attention", "step", "--steps", "3", on_cuda=("--attention", "flash_attention_2")),
        benchmark(4, "qwen2_5_vl_3b", "step", "--model", "qwen2_5_vl_3b", "--cases", "paper"),
        benchmark(4, "qwen2_5_vl_7b", "step", "--model", "qwen2_5_vl_7b", "--cases", "paper"),
        Measurement(5, "quickstart", quickstart, (*quickstart, "--max-steps", "1", "--num-questions", "4")),
    ]
    if study:
        command = tuple(shlex.split(study))
        rows.append(Measurement(STUDY_ROW, "study", command, command))
    return rows


def file_of(measurement: Measurement, out: Path) -> Path:
    return out / f"{measurement.row}_{measurement.name}.json"


def has_passed(file: Path) -> bool:
    return file.exists() and json.loads(file.read_text(encoding="utf-8"))["status"] == PASSED


def run(measurement: Measurement, timeout: float, *, tiny: bool) -> dict[str, Any]:
    """Run a command to its end or for `timeout` seconds; it and all that it started are gone then."""
    with tempfile.TemporaryDirectory() as folder:
        words = measurement.tiny if tiny else measurement.command
        command = [word.replace(SCRATCH, folder) for word in words]
        results, log = Path(folder, "results.json"), Path(folder, "log")
        if measurement.has_json:
            command += ["--json", str(results)]
        started = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=variables(), start_new_session=True
            )
            status = wait(process, timeout)
        printed = log.read_text(encoding="utf-8", errors="replace")
        return {
            "row": measurement.row,
            "name": measurement.name,
            "command": shlex.join(command),
            "status": status,
            "seconds": round(time.monotonic() - started, 1),
            "figures": figures_of(printed),
            "results": json.loads(results.read_text(encoding="utf-8")) if results.exists() else None,
            "printed": printed[-KEPT_CHARACTERS:],
        }


def variables() -> dict[str, str]:
    """The sources of this checkout, and no line that is lost in a buffer."""
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def wait(process: subprocess.Popen[bytes], timeout: float) -> str:
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        return f"stopped after {timeout:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return PASSED if code == 0 else f"failed with status {code}"


def figures_of(printed: str) -> Any:
    """The last line where it is JSON, and else the last lines as they are."""
    lines = [line.rstrip() for line in printed.splitlines() if line.strip()]
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        return lines[-4:]


def summary(out: Path) -> Table:
    """All measurements that have been run."""
    table = Table("row", "measurement", "status", "seconds", "figures", box=None, pad_edge=False)
    table.columns[3].justify = "right"
    for file in sorted(out.glob("[1-9]_*.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        lines = figure_lines(one["figures"])
        table.add_row(str(one["row"]), one["name"], one["status"], f"{one['seconds']:.0f}", lines)
    return table


def figure_lines(figures: Any) -> str:
    """Figures without what they were measured on, a line for each case."""
    if not isinstance(figures, dict):
        return "\n".join(figures)
    shown = {name: value for name, value in figures.items() if name != "environment"}
    return "\n".join(f"{name} {json.dumps(value)}" for name, value in shown.items())


def run_all(chosen: Sequence[Measurement], arguments: argparse.Namespace, console: Console) -> None:
    environment = record.environment(seed=0, device="cpu" if arguments.tiny else "cuda")
    console.print(record.describe(environment), highlight=False)
    for measurement in chosen:
        file = file_of(measurement, arguments.out)
        if has_passed(file):
            console.print(f"{measurement.row} {measurement.name}: has passed before", highlight=False)
            continue
        console.print(f"{measurement.row} {measurement.name} ...", highlight=False)
        record.write(file, environment, **run(measurement, arguments.timeout, tiny=arguments.tiny))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--rows", help="such as 1,2; by default all")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of a measurement")
    parser.add_argument("--study", help=f"command of row {STUDY_ROW}, which is left out without one")
    parser.add_argument("--tiny", action="store_true", help="a test on the CPU; the figures mean nothing")
    arguments = parser.parse_args()
    known = measurements(arguments.study)
    rows = {int(row) for row in arguments.rows.split(",")} if arguments.rows else {one.row for one in known}
    if unknown := sorted(rows - {one.row for one in known}):
        needs = f"; row {STUDY_ROW} needs --study COMMAND" if STUDY_ROW in unknown else ""
        parser.error(f"--rows {arguments.rows}: there is no row {unknown[0]} here{needs}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=150)
    run_all([one for one in known if one.row in rows], arguments, console)
    console.print(summary(arguments.out), highlight=False)
    sys.exit(0 if all(has_passed(file_of(one, arguments.out)) for one in known if one.row in rows) else 1)


if __name__ == "__main__":
    main()
