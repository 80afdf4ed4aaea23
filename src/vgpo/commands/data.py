"""`vgpo data check`: summary of a recipe's datasets, rendered prompts, and every invalid row."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text
from transformers import ProcessorMixin

from vgpo.data import DataError, DatasetSummary, check_dataset, drop_long, prompt_lengths, summarize
from vgpo.data.preview import Bin, Preview, SetCheck, previews, write_page
from vgpo.data.schema import quantity, source_rows
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import forbidden_tokens, load_processor, quiet_libraries, read_dataset
from vgpo.recipe.recipe import ON_CPU, Recipe, load_recipe
from vgpo.references import why_never_equal
from vgpo.terminal import right, say
from vgpo.text import visible

ERRORS = (RecipeError, DataError)

BAR_WIDTH = 32


def check(config: str, overrides: Sequence[str], *, html: Path | None) -> None:
    """Check the training set and the held-out set of a recipe, print what they hold, and write it to `html`.

    Loads the processor and no weights.

    Raises:
        RecipeError: The recipe, its model's processor, or the page that cannot be written.
        DataError: The faults of all sets, by field of the recipe and row.
    """
    quiet_libraries()
    console = Console()
    recipe = load_recipe(config, [*overrides, *ON_CPU])
    run = recipe.run
    trust = recipe.config.trust_remote_code
    processor = load_processor(
        recipe.model, trust_remote_code=trust, min_pixels=run.min_pixels, max_pixels=run.max_pixels
    )
    forbidden = forbidden_tokens(recipe.model, processor, trust_remote_code=trust)
    fields = ["train_data"] if run.eval_data is None else ["train_data", "eval_data"]
    checks, faults = [], []
    with tempfile.TemporaryDirectory(prefix="vgpo-") as folder:
        for field in fields:
            try:
                checks.append(check_set(recipe, field, processor, forbidden, Path(folder), console))
            except DataError as error:
                faults.append(f"{field}: {error}")
        if faults:
            raise DataError("\n".join(faults))
        if html is not None:
            say(console, f"page: {written(checks, html, config)}")


def written(checks: Sequence[SetCheck], html: Path, config: str) -> Path:
    """The page of the checks, at `html`.

    Raises:
        RecipeError: It cannot be written there.
    """
    try:
        return write_page(checks, html, recipe=config)
    except OSError as error:
        raise RecipeError(f"--html: cannot write {html} ({error}); name a file to be written") from error


def check_set(
    recipe: Recipe, field: str, processor: ProcessorMixin, forbidden: Sequence[str], folder: Path, console: Console
) -> SetCheck:
    """Check and print one set, named by its field of the recipe.

    Raises:
        DataError: The set cannot be read, or has bad rows; what could be counted is printed before.
    """
    run, chat = recipe.run, recipe.config.chat_template_kwargs
    is_train = field == "train_data"
    source, reading = str(getattr(run, field)), run.reading(field)
    console.rule(Text(f"{field}: {visible(source)}"), align="left")
    rows = read_dataset(source, toy_folder=folder, reading=reading, limit=None if is_train else run.eval_limit)
    summary = summarize(rows)
    say(console, quantity(summary.num_rows, "row"))
    console.print(counts(summary))
    if doubt := doubtful_answers(rows):
        console.print(Text(visible(doubt), style="yellow"), soft_wrap=True)
    rows = check_dataset(rows, template=run.template, forbidden=forbidden, faulty_rows=reading.faulty_rows)
    lengths = prompt_lengths(rows, run.template, processor, chat)
    left_out = drop_long(rows, lengths, run.max_prompt_length if is_train else None)[1]
    found = SetCheck(field, source, summary, lengths, left_out, previews(rows, run.template, processor, lengths, chat))
    console.print(token_table(found.bins))
    if left_out:
        console.print(Text(left_out, style="yellow"), soft_wrap=True)
    for prompt in found.previews:
        console.print(panel(prompt))
    return found


def doubtful_answers(rows: Dataset) -> str | None:
    """Warnings about reference answers that no response can equal, if there are any."""
    answers = zip(source_rows(rows), rows["answer"], strict=True)
    reasons = [(row, reason) for row, answer in answers if (reason := why_never_equal(answer or ""))]
    if not reasons:
        return None
    number, (row, reason) = quantity(len(reasons), "reference answer"), reasons[0]
    return f"no response will equal {number}; the first is that of row {row}: {reason}"


def counts(summary: DatasetSummary) -> Columns:
    """The counts as tables side by side."""
    tables = []
    for title, numbers in summary.tables.items():
        table = Table(Column(Text(visible(title))), right("rows"), box=None, pad_edge=False)
        for kind, number in numbers.items():
            table.add_row(Text(visible(kind)), str(number))
        tables.append(table)
    return Columns(tables, padding=(1, 4))


def token_table(bins: Sequence[Bin]) -> Table:
    """The histogram of prompt lengths, a bar a bin."""
    table = Table("tokens per prompt", "", right("prompts"), box=None, pad_edge=False)
    for part in bins:
        label = f"{part.low}" if part.low == part.high else f"{part.low} to {part.high}"
        bar = "█" * max(round(part.share * BAR_WIDTH), int(part.num_prompts > 0))
        table.add_row(label, Text(bar, style="cyan"), str(part.num_prompts))
    return table


def panel(prompt: Preview) -> Panel:
    """One prompt in the model's chat format, with the sizes of its images and its answer."""
    sizes = [
        Text(f"image {number}: {width} x {height} pixels", style="dim")
        for number, (height, width) in enumerate(prompt.sizes, start=1)
    ]
    parts = Group(Text(visible(prompt.text)), *sizes, Text(f"answer: {visible(prompt.answer)}", style="bold"))
    return Panel(parts, title=f"row {prompt.row}, {prompt.tokens} tokens", title_align="left")
