"""The command `vgpo`. Light on purpose: a command imports what it needs when it runs."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from vgpo import __version__
from vgpo.terminal import KeptOutput, keep_printing, message_of
from vgpo.text import visible

app = typer.Typer(
    help="Train vision-language models that keep looking at the image while they reason.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
toy = typer.Typer(help="The embedded model and its task.", no_args_is_help=True)
app.add_typer(toy, name="toy")
sets = typer.Typer(help="Look at data before it is trained on.", no_args_is_help=True)
app.add_typer(sets, name="data")
rewards = typer.Typer(help="Look at rewards before a model learns from them.", no_args_is_help=True)
app.add_typer(rewards, name="reward")

DIAL = "The difficulty dial, as in rows=4,columns=4,kinds=count+largest. Default: 3 x 3, all kinds."
PASS_FIELDS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
WRITING_FILES = {
    "train",
    "quickstart",
    "compare",
    "compare-run",
    "inspect",
    "focus-check",
    "report",
    "toy",
    "merge",
    "export",
}
"""Commands that are run for the files they write. The others are run for what they print."""


def main() -> None:
    """Entry point of the console script.

    Output that cannot be written ends no command early. Only one that is run for what it prints fails for it, with
    status 1: quietly where nobody reads any more, as in `vgpo doctor RECIPE | head -1`.
    """
    output = keep_printing()
    try:
        app(prog_name="vgpo")
    except SystemExit as end:
        if not end.code and output is not None and sys.argv[1:2] and sys.argv[1] not in WRITING_FILES:
            fail_if_lost(output)
        raise


def fail_if_lost(output: KeptOutput) -> None:
    """End in status 1 if part of what was printed is lost.

    Raises:
        SystemExit: it is.
    """
    sys.stdout.flush()
    if output.failure is None:
        return
    if not isinstance(output.failure, BrokenPipeError):
        print_error(f"the output could not be written: {output.failure}")
    raise SystemExit(1)


def print_error(message: str) -> None:
    Console(stderr=True).print(Text("error: ", style="bold red") + Text(visible(message)), soft_wrap=True)


@contextmanager
def readable(errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Errors the user can fix end in their message, without a traceback."""
    try:
        yield
    except errors as error:
        print_error(message_of(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def outside_runs(path: Path | None) -> Path | None:
    """A path that a command writes to, which must not be a file of a run."""
    from vgpo.run.outputs import check_not_of_a_run
    from vgpo.run.storage import RunFolderError

    with readable((RunFolderError,)):
        if path is not None:
            check_not_of_a_run(path)
    return path


out_option = partial(typer.Option, callback=outside_runs)
out_argument = partial(typer.Argument, callback=outside_runs)


FormatOption = Annotated[str | None, typer.Option(help="How the set is written. Default: by its columns.")]
ColumnsOption = Annotated[
    str | None,
    typer.Option(help="""Columns of the set that are read as others, in JSON: '{"answer": "ground_truth"}'."""),
]
FaultyRowsOption = Annotated[
    str, typer.Option(help="What becomes of rows that cannot be used: error, or drop, which counts and names them.")
]


def print_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"vgpo {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def quickstart(
    out: Annotated[
        Path | None,
        out_option(help="New folder for data, both runs and the report. Default: under runs/."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of both runs.")] = 0,
    max_steps: Annotated[int | None, typer.Option(hidden=True, help="Stop each run after so many steps.")] = None,
    num_questions: Annotated[int | None, typer.Option(hidden=True, help="Evaluate on so many questions.")] = None,
) -> None:
    """Train the embedded model twice, with DAPO and with VGPO, and compare them in a report.

    No GPU, no download: minutes on two cores.
    """
    from vgpo.commands import quickstart as command

    with readable(command.ERRORS):
        command.run(out, seed=seed, max_steps=max_steps, num_questions=num_questions)


@app.command(context_settings=PASS_FIELDS_ON)
def train(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="A recipe: a YAML file, or the name of one that comes with vgpo.")],
) -> None:
    """Train a model as a recipe says: [bold]vgpo train --config recipe.yaml --learning_rate 1e-6[/bold].

    Every field of a recipe can be overridden as [bold]--field value[/bold]: those of vgpo, of TRL's GRPOConfig and
    of its ModelConfig. A field that nobody knows is an error.
    """
    from vgpo.commands import train as command
    from vgpo.recipe.errors import RecipeError

    with readable((RecipeError,)):
        errors = command.errors(config, context.args)
    with readable(errors):
        command.run(config, context.args, command=sys.argv)


@app.command(name="eval")
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint folder, a hub name, or 'toy' for the embedded model.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A dataset as in a recipe: file, folder or hub name, with @split; 'toy:test'. Of a suite: a folder "
            "with the data of the tasks, or TASK=DATASET, several times. Default of a suite: from the hub."
        ),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Benchmarks: vgpo (the paper's ten), vgpo-math, vgpo-vision.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Only these benchmarks, as in mathvista,geometry3k; also mathvision, dynamath.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Of a suite: papo-greedy (default), lenient, papo-avg@K or lenient-avg@K.")
    ] = None,
    format: FormatOption = None,
    columns: ColumnsOption = None,
    faulty_rows: Annotated[
        str | None,
        typer.Option(
            help="What to do with rows that cannot be used: error, or drop, which counts and names them. Default: "
            "error; of a suite drop, where they count as wrong."
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="Prompt template. Default: that of the checkpoint's run, else plain, for a suite think_boxed."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most N questions, of a suite N per task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 64,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest response. Default: that of the checkpoint's run, else 2048.")
    ] = None,
    min_pixels: Annotated[int | None, typer.Option(help="Pixel limit. Default: saved with the checkpoint.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixel limit. Default: saved with the checkpoint.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="What answers: transformers, vllm, or for a suite a provider of inspect-ai: openai-api/NAME."
        ),
    ] = "transformers",
    seed: Annotated[int | None, typer.Option(help="Sampling seed of a suite's avg@K. Default: 0.")] = None,
    out: Annotated[
        Path | None,
        out_option(
            help="Write figures and answers to this JSON file. Of a suite: a folder, which is resumed if it is there."
        ),
    ] = None,
) -> None:
    """Measure a checkpoint: greedy accuracy on a dataset with its 95 % interval, or scores on benchmarks."""
    from vgpo.recipe.run_arguments import reading_from

    if suite or tasks:
        from vgpo.commands import evaluate_suite

        with readable(evaluate_suite.ERRORS):
            evaluate_suite.run(
                checkpoint,
                suite=suite,
                tasks=tasks,
                data=data or [],
                protocol=protocol or "papo-greedy",
                out=out,
                template=template,
                limit=limit,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
                dtype=dtype,
                engine=engine,
                seed=seed or 0,
                reading=reading_from(format, columns, faulty_rows or "drop"),
            )
        return
    from vgpo.commands import evaluate as command

    with readable(command.ERRORS):
        request = command.Request(
            checkpoint=checkpoint,
            data=command.one_dataset(data or [], of_suites={"--protocol": protocol, "--seed": seed}),
            reading=reading_from(format, columns, faulty_rows or "error"),
            template=template,
            limit=limit,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            dtype=dtype,
            engine=engine,
            out=out,
        )
        command.run(request)


@app.command()
def scores(
    folders: Annotated[list[Path], typer.Argument(help="Evaluation folders (of vgpo eval --suite).")],
    csv: Annotated[Path | None, out_option(help="Write the scores to this CSV file too.")] = None,
) -> None:
    """Print the scores of several evaluations in one table: a row per benchmark, a column per checkpoint."""
    from vgpo.commands import scores as command

    with readable(command.ERRORS):
        command.run(folders, csv)


@app.command(name="inspect")
def inspect_checkpoint(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint folder, a hub name, or 'toy' for the embedded model.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Questions to answer, a data set as in a recipe. Default: none; what the run stored is looked at."
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="Which rows, as in 0-49 or 0,3,7; of a run, which groups. Default: the first 50."),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Another checkpoint, which answers the same and is shown beside.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Responses to a question. Default: 1, which is greedy; more are drawn.")
    ] = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="How the last layer's attention is divided; slow.")
    ] = False,
    without: Annotated[
        bool, typer.Option("--without", help="Ask again with a blank image, and with another question's.")
    ] = False,
    out: Annotated[
        Path,
        out_option(
            help="A folder for inspection.json and inspection.html, or the name of one of the two.",
        ),
    ] = Path("inspection.html"),
    format: FormatOption = None,
    columns: ColumnsOption = None,
    faulty_rows: FaultyRowsOption = "error",
    template: Annotated[
        str | None, typer.Option(help="Prompt template. Default: that of the checkpoint's run, else plain.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest response. Default: that of the checkpoint's run, else 2048.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses at a time.")] = 64,
    seed: Annotated[
        int | None, typer.Option(help="Draws the responses, where there are several to a question. Default: 0.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    engine: Annotated[str, typer.Option(help="What answers the questions: transformers or vllm.")] = "transformers",
) -> None:
    """Show where a checkpoint looks: its answers, token by token, over their images, as one page."""
    from vgpo.commands import inspect as command
    from vgpo.recipe.run_arguments import reading_from

    with readable(command.ERRORS):
        request = command.Request(
            checkpoint=checkpoint,
            data=data,
            rows=rows,
            compare=compare,
            samples=samples,
            attention=attention,
            without=without,
            out=out,
            reading=reading_from(format, columns, faulty_rows),
            template=template,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            dtype=dtype,
            engine=engine,
        )
        command.run(request)


@app.command(name="focus-check")
def check_focus(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint folder, a hub name, or 'toy' for the embedded model.")
    ],
    data: Annotated[str, typer.Argument(help="The questions, a data set as in a recipe, or 'toy:test'.")],
    limit: Annotated[int, typer.Option(min=1, help="Ask the first so many rows.")] = 64,
    samples: Annotated[int, typer.Option(min=2, help="Responses to each question, a group.")] = 8,
    blind_samples: Annotated[int, typer.Option(min=1, help="Responses to each question without its image.")] = 2,
    temperature: Annotated[float, typer.Option(help="Of sampling; as in the training.")] = 1.0,
    stratum_column: Annotated[
        str | None, typer.Option(help="A column of the set; the adaptive shaping is shown for each of its values.")
    ] = None,
    out: Annotated[
        Path, out_option(help="A folder for focus_check.json and focus_check.html, or the name of one of the two.")
    ] = Path("focus_check.html"),
    format: FormatOption = None,
    columns: ColumnsOption = None,
    faulty_rows: FaultyRowsOption = "error",
    template: Annotated[
        str | None, typer.Option(help="Prompt template. Default: that of the checkpoint's run, else plain.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest response. Default: that of the checkpoint's run, else 2048.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses at a time.")] = 64,
    min_pixels: Annotated[int | None, typer.Option(help="Pixel limit. Default: saved with the checkpoint.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixel limit. Default: saved with the checkpoint.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the responses.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Say before a training whether VGPO has something to gain for a model on a data set, as a page and a table."""
    from vgpo.commands import focus_check as command
    from vgpo.recipe.run_arguments import reading_from

    with readable(command.ERRORS):
        request = command.Request(
            checkpoint=checkpoint,
            data=data,
            limit=limit,
            samples=samples,
            blind_samples=blind_samples,
            temperature=temperature,
            seed=seed,
            stratum_column=stratum_column,
            out=out,
            reading=reading_from(format, columns, faulty_rows),
            template=template,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            dtype=dtype,
        )
        command.run(request)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="An adapter: its folder, or a hub name.")],
    out: Annotated[Path, out_argument(help="New folder for weights, config, processor and chat template.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: auto (the base's own), float32, bfloat16, float16.")] = (
        "auto"
    ),
) -> None:
    """Merge a LoRA adapter into its base, and write a plain checkpoint that any program loads."""
    from vgpo.commands import merge as command

    with readable(command.ERRORS):
        command.run(adapter, out, dtype=dtype)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A run folder, a checkpoint folder or a hub name.")],
    out: Annotated[Path, out_argument(help="New folder for weights, config, processor and chat template.")],
    which: Annotated[
        str | None,
        typer.Option(
            help="Of a run: final, its final weights; last, its newest intact checkpoint; best, the checkpoint with "
            "the highest accuracy in the steps up to it. Default: final."
        ),
    ] = None,
) -> None:
    """Write a checkpoint for publishing: without optimizer and trainer state, an adapter merged into its base."""
    from vgpo.commands import export as command

    with readable(command.ERRORS):
        command.run(source, out, which=which)


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, whose curves are drawn over each other; or one or two evaluation folders (of vgpo eval "
            "--suite), two of which are compared."
        ),
    ],
    out: Annotated[Path, out_option(help="The HTML file to write.")] = Path("report.html"),
    rows: Annotated[int | None, typer.Option(min=0, help="Rows of evaluations to show at most. Default: 200.")] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Show the images of these rows; they become part of the page.")
    ] = True,
) -> None:
    """Draw one self-contained page from run folders, or from one or two evaluation folders."""
    from vgpo.commands import report as command

    with readable(command.ERRORS):
        command.run(folders, out, num_rows=rows, with_images=images)


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="A run folder; it may still be to come.")],
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks, at least.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one view and end.")] = False,
) -> None:
    """Show a run while it goes on: curves, the last rollout, pace, alarms. Ctrl-C leaves; the run does not notice."""
    from vgpo.commands import watch as command

    with readable(command.ERRORS):
        command.run(run, every=every, once=once)


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(help="A study file: methods, seeds and settings over one recipe.")],
    out: Annotated[
        Path | None,
        out_option(help="Folder of the study. Default: runs/ and the file's name."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")] = 1,
) -> None:
    """Train every method with every seed from the same start, and compare them in a table and a page.

    Run it again after a stop or a failure: what is done is skipped, what is half done goes on. Ends in status 1
    where a run fails.
    """
    from vgpo.commands import compare as command

    with readable(command.ERRORS):
        if not command.run(study, out=out, jobs=jobs):
            raise typer.Exit(1)


@app.command(name="compare-run", hidden=True, context_settings=PASS_FIELDS_ON)
def compare_run(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The folder of the run, with its recipe.")],
    jobs: Annotated[int, typer.Option(help="Runs that share the machine.")] = 1,
    start: Annotated[bool, typer.Option("--start", help="Look at the start model only.")] = False,
    launch: Annotated[str, typer.Option(help="Command that starts the processes of its training.")] = "",
) -> None:
    """One run of a study; `vgpo compare` starts it."""
    from vgpo.commands import compare_run as command

    with readable(command.ERRORS):
        command.run(folder, context.args, start=start, jobs=jobs, launch=shlex.split(launch))


@app.command(context_settings=PASS_FIELDS_ON)
def serve(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of one that comes with vgpo.")],
    prints: Annotated[bool, typer.Option("--print", help="Print the command instead of running it.")] = False,
    vllm: Annotated[str, typer.Option(help="Further options of `vllm serve`, as in --vllm '--port 9000'.")] = "",
) -> None:
    """Start the vLLM server that a recipe generates with, on the GPUs that CUDA_VISIBLE_DEVICES names.

    It gets the recipe's checkpoint, precision, pixel limits and address. Fields of the recipe can be overridden as for
    [bold]vgpo train[/bold].
    """
    from vgpo.commands import serve as command

    with readable(command.ERRORS):
        command.run(recipe, context.args, prints=prints, extra=vllm)


@app.command(context_settings=PASS_FIELDS_ON)
def doctor(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of one that comes with vgpo.")],
) -> None:
    """Look at a recipe, its data, model and machine before a run: a line for each check, with the fix.

    Fields of the recipe can be overridden as for [bold]vgpo train[/bold]. Ends in status 1 where a check fails.
    """
    from vgpo.commands import doctor as command

    with readable(command.ERRORS):
        if not command.run(recipe, context.args):
            raise typer.Exit(1)


@sets.command(context_settings=PASS_FIELDS_ON)
def check(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of one that comes with vgpo.")],
    html: Annotated[Path | None, out_option(help="Write the prompts with their images as a page too.")] = None,
) -> None:
    """Read a recipe's sets, count them, show three prompts as the model gets them, and name every bad row.

    Fields of the recipe can be overridden as for [bold]vgpo train[/bold]. Ends in an error where a row is bad.
    """
    from vgpo.commands import data as command

    with readable(command.ERRORS):
        command.check(recipe, context.args, html=html)


@rewards.command(name="test", context_settings=PASS_FIELDS_ON)
def try_rewards(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of one that comes with vgpo.")],
    rows: Annotated[int, typer.Option(min=1, help="Test on the first so many rows.")] = 100,
    exempt: Annotated[
        list[str] | None, typer.Option(help="A reward that does not judge answers: shown, not held to anything.")
    ] = None,
) -> None:
    """Give a recipe's rewards the golds, wrong answers and hostile ones, and show what each scores and costs.

    Fields of the recipe can be overridden as for [bold]vgpo train[/bold]. Ends in status 1 where a gold does not
    score 1, or a wrong answer earns more than next to nothing.
    """
    from vgpo.commands import reward as command

    with readable(command.ERRORS):
        if not command.test(recipe, context.args, num_rows=rows, exempt=exempt or []):
            raise typer.Exit(1)


@toy.command()
def warmstart(
    out: Annotated[Path, out_argument(help="New folder for the checkpoint and the log of its accuracy.")],
    seed: Annotated[int, typer.Option(help="Draws weights, images and questions.")] = 0,
    task: Annotated[str | None, typer.Option(help=DIAL)] = None,
    naming: Annotated[
        float, typer.Option(min=0, help="Weight of a second loss: the head names the digit at each visual position.")
    ] = 0.0,
    read_accuracy: Annotated[
        float, typer.Option(min=0, max=1, help="Greedy accuracy at which reading has been learned well enough.")
    ] = 0.65,
    forget: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the last stage's chains that have the bad habit.")
    ] = 0.75,
) -> None:
    """Train the toy model's weights from scratch, on the CPU."""
    from vgpo.commands import toy as command

    with readable(command.ERRORS):
        command.warmstart(out, seed=seed, task=task, naming=naming, read_accuracy=read_accuracy, forget=forget)


@toy.command()
def data(
    out: Annotated[Path, out_argument(help="Folder for train.parquet and test.parquet.")],
    num_train: Annotated[int, typer.Option(min=1, help="Training questions.")] = 4096,
    num_test: Annotated[int, typer.Option(min=1, help="Held-out questions, on scans of their own.")] = 500,
    seed: Annotated[int, typer.Option(help="Draws the questions.")] = 0,
    task: Annotated[str | None, typer.Option(help=DIAL)] = None,
) -> None:
    """Write the embedded task as parquet files with images, problem and answer."""
    from vgpo.commands import toy as command

    with readable(command.ERRORS):
        command.data(out, num_train, num_test, seed, task)


if __name__ == "__main__":
    main()
