"""The page of one evaluation folder, or of two: one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from vgpo.pages import SHARED, embed_json, inlined, page_environment
from vgpo.pages.plots import PlotValues, tick_step
from vgpo.pages.texts import fixed, percent, points, truncate
from vgpo.pages.verdict import Verdict, chance_note, difference_sentence, quoted, tone_of
from vgpo.run.storage import RunFolderError, write_file
from vgpo.suite.comparison import MAX_EVALUATIONS, MAX_NAME_CHARACTERS, NUM_ROWS, page_data
from vgpo.suite.folder import EvaluationFolder

TEMPLATES = Path(__file__).parent / "templates"
SHARED_SCRIPTS = ("elements.js", "tables.js", "downloads.js", "tokens.js", "answers.js")
LETTERS = "AB"
EMBEDDED = ("rows", "images", "several_samples")  # what the page's script draws
ACCURACY = ("accuracy", "low", "high")
DIFFERENCE = ("difference", "low", "high")
NUM_TICKS = 2  # on each side of 0, at least


@dataclass(frozen=True)
class Plot:
    """Layout of a chart of values with intervals, one line per task, in units of its view box.

    Attributes:
        low: Value at the left end.
        high: Value at the right end.
        ticks: Values with a label.
        num_lines: Tasks and averages.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    num_lines: int
    width: int = 460
    left: int = 136
    right: int = 14
    top: int = 6
    line: int = 26

    @property
    def bottom(self) -> int:
        return self.top + self.line * self.num_lines

    @property
    def height(self) -> int:
        return self.bottom + 22

    def x(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.left + (self.width - self.left - self.right) * share, 1)

    def y(self, number: int) -> float:
        """The middle of line `number`."""
        return self.top + self.line * (number + 0.5)


def write_evaluation_page(
    folders: Sequence[Path], out: Path, *, num_rows: int = NUM_ROWS, with_images: bool = True
) -> Path:
    """Write one self-contained page about one evaluation, or about two that it compares.

    Args:
        folders: One or two evaluation folders.
        out: The HTML file to write; an older one is replaced.
        num_rows: Rows to show at most; 0 or more.
        with_images: Read their images from the sources of the evaluation.

    Returns:
        Path: `out`.

    Raises:
        RunFolderError: More than two folders, or one given twice; one without an evaluation or with a broken file; or
            writing failed.
        EvaluationError: Two evaluations of which no task can be compared.
    """
    check_folders(folders)
    opened = [EvaluationFolder.open(path) for path in folders]
    page = render_evaluations(page_data(opened, num_rows=num_rows, with_images=with_images))
    write_file(out, page.encode("utf-8"))
    return out


def check_folders(folders: Sequence[Path]) -> None:
    if not 1 <= len(folders) <= MAX_EVALUATIONS:
        raise RunFolderError(f"found {len(folders)} evaluations, expected one or two; write several pages")
    if len({path.resolve() for path in folders}) < len(folders):
        raise RunFolderError(f"{folders[0]} was given twice; name each evaluation folder once")


def render_evaluations(data: Mapping[str, Any]) -> str:
    """Draw the page of `page_data`'s dict. Text in it is escaped, and no script but the page's own can run."""
    environment = page_environment(PackageLoader("vgpo.suite"))
    environment.filters.update(percent=percent, points=points, fixed=fixed, p_value=p_value, short=short)
    embedded = {name: data[name] for name in EMBEDDED}
    embedded |= {
        "titles": {task["name"]: task["title"] for task in data["tasks"]},
        "num_evaluations": len(data["evaluations"]),
        "plots": plot_values(data),
    }
    scripts = [*(SHARED / name for name in SHARED_SCRIPTS), TEMPLATES / "rows.js"]
    return environment.get_template("evaluation.html.jinja").render(
        data=data,
        found=difference_verdict(data) if len(data["evaluations"]) > 1 else score_verdict(data),
        letters=LETTERS,
        accuracy_plot=accuracy_plot(data),
        difference_plot=difference_plot(data),
        embedded=embed_json(embedded),
        **inlined([SHARED / "page.css", TEMPLATES / "evaluation.css"], scripts),
    )


def score_verdict(data: Mapping[str, Any]) -> Verdict:
    """The score of one checkpoint: the widest average, of a single task its accuracy, else the range over tasks."""
    averages = [(one, one["scores"][0]) for one in data["averages"] if one["scores"][0] is not None]
    if averages:
        average, score = averages[-1]
        number = f"{score['num_tasks']} of {average['num_tasks']} tasks"
        return Verdict("open", f"{average['title']} accuracy is {with_interval(score)} ({number})")
    scores = sorted(((one["title"], one["scores"][0]) for one in data["tasks"]), key=lambda pair: pair[1]["accuracy"])
    if len(scores) == 1:
        [(title, score)] = scores
        return Verdict("open", f"{quoted(title)} accuracy is {with_interval(score)} ({score['num_scored']:,} rows)")
    ends = " to ".join(f"{percent(score['accuracy'])} % ({quoted(title)})" for title, score in (scores[0], scores[-1]))
    return Verdict("open", f"Accuracy is {ends}, over {len(scores)} tasks")


def difference_verdict(data: Mapping[str, Any]) -> Verdict:
    """How far B is above A: the widest average, of a single task its difference, else how often B is above."""
    averages = [(one["title"], one["difference"]) for one in data["averages"] if one["difference"]]
    tasks = [(one["title"], one["difference"]) for one in data["tasks"] if one["difference"]]
    if not averages and len(tasks) > 1:
        tones = [tone_of(found["low"], found["high"]) for _, found in tasks]
        above, below, level = (tones.count(tone) for tone in ("gain", "loss", "open"))
        counts = f"B is above A on {above} of {len(tasks)} tasks and below it on {below}"
        return Verdict("open", counts, [f"On {level} the 95 % interval holds 0: the difference may be chance."])
    title, found = averages[-1] if averages else tasks[0]
    basis = f"{len(found['tasks'])} tasks" if averages else f"{found['num_rows']:,} rows"
    low, high = found["low"], found["high"]
    headline = difference_sentence(
        "B", "A", f"{quoted(title)} accuracy", found["difference"], low, high, f"{basis}, paired"
    )
    return Verdict(tone_of(low, high), headline, chance_note(low, high))


def with_interval(score: Mapping[str, Any]) -> str:
    """An accuracy in percent with its interval, if it has one."""
    low, high = score["low"], score["high"]
    interval = "" if low is None else f" [{percent(low)}, {percent(high)}]"
    return f"{percent(score['accuracy'])} %{interval}"


def accuracy_plot(data: Mapping[str, Any]) -> Plot:
    return Plot(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), len(data["tasks"]) + len(data["averages"]))


def difference_plot(data: Mapping[str, Any]) -> Plot | None:
    """The chart of differences, symmetric about 0; None if there are none."""
    found = [one["difference"] for one in (*data["tasks"], *data["averages"]) if one["difference"] is not None]
    if not found:
        return None
    reach = max(0.01, *(abs(one[end]) for one in found for end in ("low", "high", "difference")))
    step = tick_step(reach, NUM_TICKS)
    ticks = [number * step for number in range(-int(reach / step), int(reach / step) + 1)]
    return Plot(-1.05 * reach, 1.05 * reach, tuple(ticks), len(found))


def plot_values(data: Mapping[str, Any]) -> dict[str, PlotValues]:
    """The values of each chart, by the id of its figure."""
    shown = [*data["tasks"], *data["averages"]]
    scores = [
        (one["title"], letter, score) for one in shown for letter, score in zip(LETTERS, one["scores"], strict=False)
    ]
    accuracies = [[title, letter, *map(score.get, ACCURACY)] for title, letter, score in scores if score]
    plots: dict[str, PlotValues] = {"accuracy-plot": [["task", "checkpoint", *ACCURACY], *accuracies]}
    changes = [[one["title"], *map(one["difference"].get, DIFFERENCE)] for one in shown if one["difference"]]
    if changes:
        plots["difference-plot"] = [["task", *DIFFERENCE], *changes]
    return plots


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def short(text: str) -> str:
    return truncate(text, MAX_NAME_CHARACTERS)
