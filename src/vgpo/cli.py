"""The command `vgpo`. Light on purpose: a command imports what it needs when it runs."""

import os
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
from vgpo.places import TOY_MODEL, checkpoint_fault, dataset_fault, exists, is_folder, missing
from vgpo.terminal import KeptOutput, keep_printing, message_of, say
from vgpo.text import visible


def with_hyphens(option: str) -> str:
    """The name of an option: hyphens and underscores are the same."""
    return option.replace("_", "-")


# Panels of `vgpo --help`.
START, CHECK, TRAIN, MEASURE, PUBLISH = "Start", "Check before training", "Train", "Measure and compare", "Publish"

app = typer.Typer(
    help="Train vision-language models that keep looking at the image while they reason.",
    epilog="Shell completion: [bold]vgpo --install-completion[/bold]. In option names, hyphens and underscores are "
    "the same.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"token_normalize_func": with_hyphens},
)
toy = typer.Typer(help="The toy model and its task.", no_args_is_help=True)
app.add_typer(toy, name="toy", rich_help_panel=START)
sets = typer.Typer(help="Check the datasets of a recipe: `vgpo data check`.", no_args_is_help=True)
app.add_typer(sets, name="data", rich_help_panel=CHECK)
rewards = typer.Typer(help="Test the rewards of a recipe: `vgpo reward test`.", no_args_is_help=True)
app.add_typer(rewards, name="reward", rich_help_panel=CHECK)
packaged = typer.Typer(help="Recipes, accelerate files and studies that come with the package.")
app.add_typer(packaged, name="recipes", rich_help_panel=START)

TASK = "Difficulty settings, for example rows=4,columns=4,kinds=count+largest. Default: 3 x 3, all kinds."
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


RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe: a YAML file, or the name of a packaged one (`vgpo recipes`).")
]
CheckpointArgument = Annotated[
    str,
    typer.Argument(
        help="A checkpoint folder, a run folder (its final weights, or else its newest checkpoint), a hub id "
        "(owner/name), or 'toy' for the toy model."
    ),
]
FormatOption = Annotated[str | None, typer.Option(help="Dataset format. Default: detected from its columns.")]
ColumnsOption = Annotated[
    str | None,
    typer.Option(help="""Columns to read under another name, in JSON: '{"answer": "ground_truth"}'."""),
]
FaultyRowsOption = Annotated[
    str, typer.Option(help="What to do with rows that cannot be used: error, or drop, which counts and lists them.")
]
TemplateOption = Annotated[
    str | None, typer.Option(help="Prompt template. Default: that of the checkpoint's run, else plain.")
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(min=1, help="Maximum response length. Default: that of the checkpoint's run, else 2048."),
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Responses generated at once.")]
MinPixelsOption = Annotated[
    int | None, typer.Option(help="Enlarge smaller images to this many pixels. Default: saved with the checkpoint.")
]
MaxPixelsOption = Annotated[
    int | None, typer.Option(help="Reduce larger images to this many pixels. Default: saved with the checkpoint.")
]
DtypeOption = Annotated[str, typer.Option(help="Dtype of the weights: auto, float32, bfloat16 or float16.")]


def say_loading() -> None:
    """Tell a terminal what takes the next seconds, once; of several processes, the first one does."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if "torch" not in sys.modules and is_first and sys.stderr.isatty():
        Console(stderr=True).print("loading torch, transformers, trl ...", style="dim", highlight=False)


def check_recipe(recipe: str, overrides: list[str], **parts: bool) -> None:
    """Check a recipe as far as that takes no time, then say that the rest takes some; `parts` as in `check_early`."""
    from vgpo.recipe.early_checks import check_early
    from vgpo.recipe.errors import RecipeError
    from vgpo.run.storage import RunFolderError

    with readable((RecipeError, RunFolderError)):
        check_early(recipe, overrides, **parts)
    say_loading()


def stop_if(fault: str | None) -> None:
    """End in status 2 with what is wrong with an argument, if something is."""
    if fault is not None:
        print_error(fault)
        raise typer.Exit(2)


def choose_checkpoint(source: str) -> str:
    """The checkpoint that an argument stands for; of a run folder, which one is printed."""
    from vgpo.run.choice import checkpoint_of
    from vgpo.run.storage import RunFolderError

    with readable((RunFolderError,)):
        checkpoint, note = checkpoint_of(source)
    if note:
        say(Console(), note)
    return checkpoint


def print_version(requested: bool) -> None:
    if requested:
        Console().print(f"vgpo {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=START)
def quickstart(
    out: Annotated[
        Path | None,
        out_option(help="New folder for data, both runs and the report. Default: a folder in runs/."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of both runs.")] = 0,
    max_steps: Annotated[int | None, typer.Option(hidden=True, help="Stop each run after N steps.")] = None,
    num_questions: Annotated[int | None, typer.Option(hidden=True, help="Evaluate on N questions.")] = None,
) -> None:
    """Train the toy model twice, with DAPO and with VGPO, and compare both runs in a report.

    Needs no GPU and no download; takes minutes on two CPU cores.
    """
    say_loading()
    from vgpo.commands import quickstart as command

    with readable(command.ERRORS):
        command.run(out, seed=seed, max_steps=max_steps, num_questions=num_questions)


@app.command(context_settings=PASS_FIELDS_ON, rich_help_panel=CHECK)
def doctor(
    context: typer.Context,
    recipe: RecipeArgument,
) -> None:
    """Check a recipe, its data, model and machine before a run; one line per check, with the fix.

    Override fields of the recipe as in [bold]vgpo train[/bold]. Exits 1 if a check fails.
    """
    check_recipe(recipe, context.args, paths=False)  # missing files are lines of its table
    from vgpo.commands import doctor as command

    with readable(command.ERRORS):
        if not command.run(recipe, context.args):
            raise typer.Exit(1)


@app.command(context_settings=PASS_FIELDS_ON, rich_help_panel=TRAIN)
def train(
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe: a YAML file, or the name of a packaged one (`vgpo recipes`).")
    ] = None,
    config: Annotated[str | None, typer.Option(help="The recipe, as an option.")] = None,
    help_fields: Annotated[
        bool, typer.Option("--help-fields", help="List the fields of a recipe; add a WORD to filter them.")
    ] = False,
) -> None:
    """Train a model from a recipe: [bold]vgpo train recipe.yaml --learning_rate 1e-6[/bold].

    [bold]--field value[/bold] overrides a field of the recipe: one of vgpo, of TRL's GRPOConfig or of its
    ModelConfig; [bold]vgpo train --help-fields WORD[/bold] lists them.
    """
    words = [*([] if recipe is None else [recipe]), *context.args]
    if help_fields:
        from vgpo.commands import fields

        if not fields.run(words[0] if words else ""):
            raise typer.Exit(1)
        return
    source, overrides = recipe_and_overrides(words, config)
    check_recipe(source, overrides, trains=True)
    from vgpo.commands import train as command
    from vgpo.recipe.errors import RecipeError

    with readable((RecipeError,)):
        errors = command.errors(source, overrides)
    with readable(errors):
        command.run(source, overrides, command=sys.argv)


def recipe_and_overrides(words: list[str], config: str | None) -> tuple[str, list[str]]:
    """The recipe, as the first word or the option, and the words that override its fields."""
    is_named = bool(words) and not words[0].startswith("-")
    if is_named and config is not None:
        print_error(f"found the recipe {words[0]!r} and --config {config}, expected one of them; remove the other")
    elif is_named:
        return words[0], words[1:]
    elif config is not None:
        return config, words
    else:
        print_error(
            "no recipe: run `vgpo train RECIPE`, with the recipe first; `vgpo recipes` lists the packaged ones"
        )
    raise typer.Exit(2)


@app.command(name="eval", rich_help_panel=MEASURE)
def evaluate(
    checkpoint: CheckpointArgument,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A dataset as in a recipe: file, folder or hub id, with @split, or 'toy:test'. With --suite: a "
            "folder with the data of the tasks, or TASK=DATASET, repeatable; default: from the hub."
        ),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Benchmarks: vgpo (the ten of the paper), vgpo-math or vgpo-vision.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Only these benchmarks, such as mathvista,geometry3k; also mathvision, dynamath."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="With --suite: papo-greedy (default), lenient, papo-avg@K or lenient-avg@K.")
    ] = None,
    format: FormatOption = None,
    columns: ColumnsOption = None,
    faulty_rows: Annotated[
        str | None,
        typer.Option(
            help="What to do with rows that cannot be used: error, or drop, which counts and lists them. Default: "
            "error; with --suite drop, which counts them as wrong."
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="Prompt template. Default: that of the checkpoint's run, else plain; with --suite think_boxed."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate at most N questions; with --suite, N per task.")
    ] = None,
    batch_size: BatchSizeOption = 64,
    max_new_tokens: MaxNewTokensOption = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    dtype: DtypeOption = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="Generation engine: transformers, vllm, or with --suite a provider of inspect-ai: openai-api/NAME."
        ),
    ] = "transformers",
    seed: Annotated[int | None, typer.Option(help="Sampling seed of the avg@K protocols. Default: 0.")] = None,
    out: Annotated[
        Path | None,
        out_option(
            help="Write figures and answers to this JSON file. With --suite: a folder; an existing one is resumed."
        ),
    ] = None,
) -> None:
    """Evaluate a checkpoint: greedy accuracy on a dataset with its 95 % interval, or scores on benchmarks."""
    if "/" not in engine:  # else a server's name for a model
        checkpoint = choose_checkpoint(checkpoint)
    for source in () if suite or tasks else data or ():
        stop_if(dataset_fault(source))
    say_loading()
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


@app.command(rich_help_panel=MEASURE)
def scores(
    folders: Annotated[list[Path], typer.Argument(help="Evaluation folders (written by `vgpo eval --suite`).")],
    csv: Annotated[Path | None, out_option(help="Also write the scores to this CSV file.")] = None,
) -> None:
    """Print the scores of several evaluations in one table: a row per benchmark, a column per checkpoint."""
    from vgpo.commands import scores as command

    with readable(command.ERRORS):
        command.run(folders, csv)


@app.command(name="inspect", rich_help_panel=MEASURE)
def inspect_checkpoint(
    checkpoint: CheckpointArgument,
    data: Annotated[
        str | None,
        typer.Option(help="Dataset of questions, as in a recipe. If omitted, use the rollouts stored by the run."),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="Rows, such as 0-49 or 0,3,7; of stored rollouts, groups. Default: the first 50."),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Another checkpoint or run folder to show next to it, on the same questions.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Responses per question (1 = greedy, more = sampled). Default: 1.")
    ] = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="Show the attention of the last layer; slow.")
    ] = False,
    ablate_image: Annotated[
        bool,
        typer.Option("--ablate-image", help="Answer again with a blank image, and with another question's image."),
    ] = False,
    without: Annotated[bool, typer.Option("--without", hidden=True, help="The old name of --ablate-image.")] = False,
    out: Annotated[
        Path,
        out_option(
            help="Folder for inspection.json and inspection.html, or the path of one of the two.",
        ),
    ] = Path("inspection.html"),
    format: FormatOption = None,
    columns: ColumnsOption = None,
    faulty_rows: FaultyRowsOption = "error",
    template: TemplateOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    batch_size: BatchSizeOption = 64,
    seed: Annotated[int | None, typer.Option(help="Sampling seed. Default: 0.")] = None,
    dtype: DtypeOption = "auto",
    engine: Annotated[str, typer.Option(help="Generation engine: transformers or vllm.")] = "transformers",
) -> None:
    """Show where a checkpoint looks: the visual focus of its answers, token by token, on one page."""
    checkpoint = choose_checkpoint(checkpoint)
    compare = None if compare is None else choose_checkpoint(compare)
    stop_if(None if data is None else dataset_fault(data))
    if without:
        say(Console(stderr=True), "--without is now called --ablate-image; the old name goes with the next release")
    say_loading()
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
            ablate_image=ablate_image or without,
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


@app.command(name="focus-check", rich_help_panel=CHECK)
def check_focus(
    checkpoint: CheckpointArgument,
    data: Annotated[str, typer.Argument(help="Dataset of questions, as in a recipe, or 'toy:test'.")],
    limit: Annotated[int, typer.Option(min=1, help="Use the first N rows.")] = 64,
    samples: Annotated[int, typer.Option(min=2, help="Responses per question, a group.")] = 8,
    blind_samples: Annotated[int, typer.Option(min=1, help="Responses per question without its image.")] = 2,
    temperature: Annotated[float, typer.Option(help="Sampling temperature, as in training.")] = 1.0,
    stratum_column: Annotated[
        str | None, typer.Option(help="Column of strata; the adaptive shaping is shown for each of its values.")
    ] = None,
    out: Annotated[
        Path, out_option(help="Folder for focus_check.json and focus_check.html, or the path of one of the two.")
    ] = Path("focus_check.html"),
    format: FormatOption = None,
    columns: ColumnsOption = None,
    faulty_rows: FaultyRowsOption = "error",
    template: TemplateOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    batch_size: BatchSizeOption = 64,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 0,
    dtype: DtypeOption = "auto",
) -> None:
    """Estimate before training whether VGPO can help a model on a dataset; prints a table, writes a page."""
    checkpoint = choose_checkpoint(checkpoint)
    stop_if(dataset_fault(data))
    say_loading()
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


@app.command(rich_help_panel=PUBLISH)
def merge(
    adapter: Annotated[str, typer.Argument(help="An adapter: its folder, or a hub id (owner/name).")],
    out: Annotated[Path, out_argument(help="New folder for weights, config, processor and chat template.")],
    dtype: Annotated[
        str, typer.Option(help="Dtype of the weights: auto (that of the base), float32, bfloat16 or float16.")
    ] = ("auto"),
) -> None:
    """Merge a LoRA adapter into its base, and write a plain checkpoint that any program loads."""
    stop_if(checkpoint_fault(adapter))
    say_loading()
    from vgpo.commands import merge as command

    with readable(command.ERRORS):
        command.run(adapter, out, dtype=dtype)


@app.command(rich_help_panel=PUBLISH)
def export(
    source: Annotated[str, typer.Argument(help="A run folder, a checkpoint folder or a hub id (owner/name).")],
    out: Annotated[Path, out_argument(help="New folder for weights, config, processor and chat template.")],
    which: Annotated[
        str | None,
        typer.Option(
            help="For a run: final (its final weights), last (its newest intact checkpoint) or best (the checkpoint "
            "with the highest training accuracy up to its step). Default: final."
        ),
    ] = None,
) -> None:
    """Write a checkpoint to publish: no optimizer and trainer state, an adapter merged into its base."""
    stop_if(None if source == TOY_MODEL else checkpoint_fault(source))
    say_loading()
    from vgpo.commands import export as command

    with readable(command.ERRORS):
        command.run(source, out, which=which)


@app.command(rich_help_panel=MEASURE)
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, or a folder with several runs, drawn over each other; or one or two evaluation folders "
            "(of `vgpo eval --suite`), two of which are compared."
        ),
    ],
    out: Annotated[Path, out_option(help="HTML file to write.")] = Path("report.html"),
    rows: Annotated[int | None, typer.Option(min=0, help="Show at most N rows of evaluations. Default: 200.")] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Embed the images of these rows in the page.")
    ] = True,
) -> None:
    """Write one self-contained page about run folders, or about one or two evaluation folders."""
    for folder in folders:
        stop_if(None if is_folder(str(folder)) else f"{missing(str(folder), 'folder')}; correct the path")
    say_loading()
    from vgpo.commands import report as command

    with readable(command.ERRORS):
        command.run(folders, out, num_rows=rows, with_images=images)


@app.command(rich_help_panel=TRAIN)
def watch(
    run: Annotated[Path, typer.Argument(help="Run folder (may not exist yet).")],
    every: Annotated[float, typer.Option(min=0.2, help="Refresh interval in seconds.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one snapshot and exit.")] = False,
) -> None:
    """Live dashboard of a run: curves, the last rollout, throughput, alarms. Ctrl-C exits; training continues."""
    from vgpo.commands import watch as command

    with readable(command.ERRORS):
        command.run(run, every=every, once=once)


@app.command(rich_help_panel=MEASURE)
def compare(
    study: Annotated[Path, typer.Argument(help="Study file: methods, seeds and settings over one recipe.")],
    out: Annotated[
        Path | None,
        out_option(help="Folder of the study. Default: runs/ and the name of the file."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs at the same time, each in its own process.")] = 1,
) -> None:
    """Train every method with every seed from the same checkpoint, and compare them in a table and a page.

    Safe to re-run: finished runs are skipped, interrupted ones resume. Exits 1 if a run fails.
    """
    stop_if(None if exists(str(study)) else f"{missing(str(study), 'study file')}; `vgpo recipes` lists packaged ones")
    say_loading()
    from vgpo.commands import compare as command

    with readable(command.ERRORS):
        if not command.run(study, out=out, jobs=jobs):
            raise typer.Exit(1)


@app.command(name="compare-run", hidden=True, context_settings=PASS_FIELDS_ON)
def compare_run(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of the run, with its recipe.")],
    jobs: Annotated[int, typer.Option(help="Runs that share the machine.")] = 1,
    start: Annotated[bool, typer.Option("--start", help="Evaluate the initial model only.")] = False,
    launch: Annotated[str, typer.Option(help="Command that starts the processes of its training.")] = "",
) -> None:
    """One run of a study; `vgpo compare` starts it."""
    from vgpo.commands import compare_run as command

    with readable(command.ERRORS):
        command.run(folder, context.args, start=start, jobs=jobs, launch=shlex.split(launch))


@app.command(context_settings=PASS_FIELDS_ON, rich_help_panel=TRAIN)
def serve(
    context: typer.Context,
    recipe: RecipeArgument,
    prints: Annotated[bool, typer.Option("--print", help="Print the command instead of running it.")] = False,
    vllm: Annotated[str, typer.Option(help="More options for `vllm serve`, for example --vllm '--port 9000'.")] = "",
) -> None:
    """Start the vLLM server that a recipe generates with, on the GPUs in CUDA_VISIBLE_DEVICES.

    It uses the recipe's checkpoint, precision, pixel limits and address. Override fields of the recipe as in
    [bold]vgpo train[/bold].
    """
    check_recipe(recipe, context.args)
    from vgpo.commands import serve as command

    with readable(command.ERRORS):
        command.run(recipe, context.args, prints=prints, extra=vllm)


@sets.command(context_settings=PASS_FIELDS_ON)
def check(
    context: typer.Context,
    recipe: RecipeArgument,
    html: Annotated[Path | None, out_option(help="Also write the prompts with their images as a page.")] = None,
) -> None:
    """Check the datasets of a recipe: a summary, three rendered prompts, and every invalid row.

    Override fields of the recipe as in [bold]vgpo train[/bold]. Exits 2 if a row is invalid.
    """
    check_recipe(recipe, context.args)
    from vgpo.commands import data as command

    with readable(command.ERRORS):
        command.check(recipe, context.args, html=html)


@rewards.command(name="test", context_settings=PASS_FIELDS_ON)
def try_rewards(
    context: typer.Context,
    recipe: RecipeArgument,
    rows: Annotated[int, typer.Option(min=1, help="Test on the first N rows.")] = 100,
    exempt: Annotated[
        list[str] | None, typer.Option(help="Show this reward but never fail on it; repeatable.")
    ] = None,
) -> None:
    """Test the rewards of a recipe on reference answers, wrong answers and adversarial ones; show scores and times.

    Override fields of the recipe as in [bold]vgpo train[/bold]. Exits 1 if a reference answer does not score 1, or a
    wrong answer scores well above 0.
    """
    check_recipe(recipe, context.args)
    from vgpo.commands import reward as command

    with readable(command.ERRORS):
        if not command.test(recipe, context.args, num_rows=rows, exempt=exempt or []):
            raise typer.Exit(1)


@packaged.callback(invoke_without_command=True)
def list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_packaged()


@packaged.command(name="list")
def list_packaged() -> None:
    """List the packaged recipes, accelerate files and studies (default)."""
    from vgpo.commands import recipes as command

    command.show_list()


@packaged.command(name="show")
def show_packaged(name: Annotated[str, typer.Argument(help="A name from `vgpo recipes`.")]) -> None:
    """Print a packaged file."""
    from vgpo.commands import recipes as command

    with readable(command.ERRORS):
        command.show(name)


@packaged.command(name="copy")
def copy_packaged(
    name: Annotated[str, typer.Argument(help="A name from `vgpo recipes`.")],
    destination: Annotated[Path, out_argument(help="New file, or a folder.")] = Path(),
) -> None:
    """Copy a packaged file, to change it."""
    from vgpo.commands import recipes as command

    with readable(command.ERRORS):
        command.copy(name, destination)


@toy.command()
def warmstart(
    out: Annotated[Path, out_argument(help="New folder for the checkpoint and a log of its accuracy.")],
    seed: Annotated[int, typer.Option(help="Seed of weights, images and questions.")] = 0,
    task: Annotated[str | None, typer.Option(help=TASK)] = None,
    naming: Annotated[
        float,
        typer.Option(min=0, help="Weight of an auxiliary loss: the head names the digit at each visual position."),
    ] = 0.0,
    read_accuracy: Annotated[
        float, typer.Option(min=0, max=1, help="Greedy accuracy at which the reading stage ends.")
    ] = 0.65,
    forget: Annotated[
        float, typer.Option(min=0, max=1, help="Share of chains of the last stage that forget the image.")
    ] = 0.75,
) -> None:
    """Retrain the toy model from scratch (CPU)."""
    say_loading()
    from vgpo.commands import toy as command

    with readable(command.ERRORS):
        command.warmstart(out, seed=seed, task=task, naming=naming, read_accuracy=read_accuracy, forget=forget)


@toy.command()
def data(
    out: Annotated[Path, out_argument(help="Folder for train.parquet and test.parquet.")],
    num_train: Annotated[int, typer.Option(min=1, help="Training questions.")] = 4096,
    num_test: Annotated[int, typer.Option(min=1, help="Held-out questions, from other scans.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the questions.")] = 0,
    task: Annotated[str | None, typer.Option(help=TASK)] = None,
) -> None:
    """Write the toy task as parquet files with images, problem and answer."""
    say_loading()
    from vgpo.commands import toy as command

    with readable(command.ERRORS):
        command.data(out, num_train, num_test, seed, task)


if __name__ == "__main__":
    main()
