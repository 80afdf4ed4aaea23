"""A campaign against runs: one fault each, then a resume, then a comparison with an undisturbed run.

    python -m benchmarks.faults [--seeds 30] [--kinds kill truncate ...] [--out FOLDER]

Fault number n is drawn from seed n; the kinds take turns, and it strikes the run of training seed n mod 3: that of the
toy model, 8 updates, 2 to a generation, with dynamic sampling and more than one epoch. Each start is a process of
its own, forked from one that has the libraries loaded; kills are SIGKILLs. The same command starts and resumes:
`vgpo train --config recipe.yaml --seed S --run_dir RUN --resume true`.

A fault is survived if the run ends as it should (by the signal, with a message, or not at all), nothing of a
checkpoint is lost, and the resumed run reaches its end. It is identical if weights, rollouts (byte by byte) and
metrics (all but times) are those of the clean run. With a planted NaN, the clean run is one with the same NaN that is
not killed; a grader that hangs may add to the metric that counts time-outs.

Finished lines are in FOLDER/faults.jsonl: the same command resumes after them. Runs of faults that were not
survived, or not identical, stay there. The last line is JSON, and the exit status 0 if nothing was lost.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.fault_kinds import KINDS
from benchmarks.fault_lab import Lab, LostError, Trial, differences, read_lines, text_of
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vgpo.run.environment import describe_environment


@dataclass(frozen=True)
class Result:
    """A line of the campaign."""

    seed: int
    kind: str
    fault: str
    survived: bool
    identical: bool
    resumed: bool
    seconds: float
    found: str = ""


def inject(lab: Lab, kind: str, seed: int) -> Result:
    """Let one fault strike, resume, and compare."""
    trial = Trial(lab, kind, seed)
    clean, started = lab.clean(trial.training_seed), time.monotonic()
    try:
        KINDS[kind](trial)
        survived, found = True, differences(trial.run, trial.reference or clean, trial.may_differ)
    except LostError as error:
        survived, found = False, [str(error)]
    identical = not found
    if identical:
        trial.clear()
    else:
        found.append(f"kept: {trial.run}, {trial.logs}")
    seconds = round(time.monotonic() - started, 1)
    return Result(seed, kind, trial.said, survived, identical, trial.resumed, seconds, "; ".join(found))


def campaign(lab: Lab, kinds: Sequence[str], num_faults: int, console: Console) -> list[Result]:
    """Inject the faults that `faults.jsonl` does not hold yet; return all."""
    written = lab.folder / "faults.jsonl"
    results = [Result(**line) for line in read_lines(written)]
    done = {(result.seed, result.kind) for result in results}
    faults = [(seed, kinds[seed % len(kinds)]) for seed in range(num_faults)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("faults", total=num_faults, completed=len(done.intersection(faults)))
        for seed, kind in faults:
            if (seed, kind) in done:
                continue
            progress.update(task, description=kind)
            results.append(inject(lab, kind, seed))
            with written.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(results[-1])) + "\n")
            say(results[-1], console)
            progress.advance(task)
    return [result for result in results if (result.seed, result.kind) in faults]


def say(result: Result, console: Console) -> None:
    ends = "survived" if result.survived else "LOST", "identical" if result.identical else "DIFFERENT"
    line = f"{result.seed:3d}  {result.kind:14s}  {'  '.join(ends)}  {result.seconds:5.1f} s  {result.fault}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    if result.found:
        console.print(f"     {result.found}", markup=False, highlight=False, soft_wrap=True)


def refuse_other_code(folder: Path) -> None:
    """Whether the lines that are there are of the code that is to go on."""
    path, commit = folder / "commit.txt", str(describe_environment(0, [])["commit"])
    if path.exists() and text_of(path) != commit:
        sys.exit(f"{folder} holds a campaign at commit {text_of(path)}, and this is {commit}: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(commit, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30, help="how many faults")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="folder of the campaign; by default a new one")
    arguments = parser.parse_args()
    folder = (arguments.out or Path(tempfile.mkdtemp(prefix="faults-"))).resolve()
    refuse_other_code(folder)
    # Processes that are killed leave semaphores behind, which the standard library removes, and mentions.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    console = Console()
    console.print(f"in {folder}", highlight=False, soft_wrap=True)
    results = campaign(Lab.build(folder), arguments.kinds, arguments.seeds, console)
    counts = {
        "injected": len(results),
        "survived": sum(result.survived for result in results),
        "identical": sum(result.identical for result in results),
        "resumed": sum(result.resumed for result in results),
    }
    print(json.dumps(counts))
    sys.exit(counts["identical"] < len(results))


if __name__ == "__main__":
    main()
