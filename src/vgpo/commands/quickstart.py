"""`vgpo quickstart`: the toy model trained twice from the same start, and a page that compares the two."""

from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vgpo.recipe.loading import quiet_libraries
from vgpo.recipe.train import ERRORS, TrainedRun, train_recipe
from vgpo.report import write_report
from vgpo.run import RunFolder
from vgpo.terminal import say
from vgpo.toy import write_datasets

__all__ = ["ERRORS", "run"]

RECIPES = {"DAPO": "quickstart_dapo", "VGPO": "quickstart_vgpo"}


def run(out: Path | None, *, seed: int, max_steps: int | None, num_questions: int | None) -> None:
    """Train, evaluate on held-out images before and after, draw the report, print the figures."""
    quiet_libraries()
    out = out or Path("runs") / f"quickstart-{datetime.now():%Y%m%d-%H%M%S}"
    for name in RECIPES:
        RunFolder(out / name.lower()).require_free()
    train_file, test_file = write_datasets(out / "data")
    words = ["--train_data", str(train_file), "--eval_data", str(test_file), "--seed", str(seed)]
    if max_steps is not None:
        words += ["--max_steps", str(max_steps)]
    if num_questions is not None:
        words += ["--eval_limit", str(num_questions)]

    console = Console()
    trained = {}
    for name, recipe in RECIPES.items():
        console.rule(name)
        overrides = [*words, "--run_dir", str(out / name.lower())]
        # Each run is recorded with the command that trains, and resumes, it alone.
        trained[name] = train_recipe(recipe, overrides, command=["vgpo", "train", recipe, *overrides])[1]
    report = out / "report.html"
    write_report([run.folder.path for run in trained.values()], report)
    console.print(comparison(trained))
    for name, run in trained.items():
        say(console, f"weights of {name}: {run.folder.final_path}")
    say(console, f"report: {report}")


def comparison(trained: dict[str, TrainedRun]) -> Table:
    """Held-out accuracy of each run before and after, in per cent, with the interval of the latter."""
    table = Table(box=None, pad_edge=False)
    table.add_column("run")
    for column in ("before", "after", "gain", "95 % interval", "minutes"):
        table.add_column(column, justify="right")
    for name, run in trained.items():
        before, after = run.evaluations["before"], run.evaluations["after"]
        table.add_row(
            name,
            f"{before.accuracy:.1%}",
            f"{after.accuracy:.1%}",
            f"{100 * (after.accuracy - before.accuracy):+.1f} points",
            f"{after.low:.1%} to {after.high:.1%}",
            f"{run.training_seconds / 60:.1f}",
        )
    return table
