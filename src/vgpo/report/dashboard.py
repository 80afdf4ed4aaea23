"""The state of a run as lines of a terminal: progress, health, curves and the newest rollout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from vgpo.metric_names import GRADER_TIMEOUTS, GUARD_SKIPPED_STEPS, TIMES
from vgpo.report import characters
from vgpo.report.characters import SHORT, duration, short
from vgpo.report.data import SUITE_CHART
from vgpo.report.watched import WatchedRun
from vgpo.text import visible

CHARTS = (
    "length",
    "entropy",
    "focus",
    "late_early",
    "grad_norm",
)  # after accuracy, or the reward where there is none
CHART_WIDTH = 26  # at least, with a column between two
MAX_CHART_COLUMNS = 6
LABEL_WIDTH = SHORT
MIN_ROLLOUT_HEIGHT = 4
# From the lowest focus of a rollout to its highest; each with its own text colour, so that it reads on any background.
SHADES = ("", "black on #c6dbef", "black on #7fb8da", "white on #08519c")
VERDICTS = {True: "✓ correct", False: "✗ wrong", None: "not graded"}


def view(watched: WatchedRun, width: int, height: int, now: float) -> list[Text]:
    """At most `height` lines of at most `width` cells: state, curves, the last rollout; what does not fit is left out.

    now: seconds since 1970.
    """
    lines = header(watched, width, now)
    room = height - len(lines)
    plotted = chart_rows(charts_of(watched.charts), width, room)
    lines += plotted
    room -= len(plotted)
    if watched.rollout is not None and room >= MIN_ROLLOUT_HEIGHT:
        lines += rollout_lines(watched.rollout, width, room)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines[:height]


def header(watched: WatchedRun, width: int, now: float) -> list[Text]:
    """What run this is, how far it is, how fast it goes, and whether all is well."""
    if not watched.begun:
        return [Text(f"no run in {one_line(str(watched.folder.path))} yet; waiting. Ctrl-C exits.")]
    config = watched.config
    facts = [Path(str(config.get("model_name_or_path", ""))).name, str(config.get("shaping", ""))]
    title = Text.assemble(
        (one_line(watched.folder.path.resolve().name), "bold"),
        one_line("".join(f" · {fact}" for fact in facts if fact)),
    )
    news = Text.assemble(state(watched, now))
    first = [Text(" · ").join([title, news])] if title.cell_len + 3 + news.cell_len <= width else [title, news]
    lines = [*first, progress(watched)]
    if phases := phase_shares(watched.last_line):
        lines.append(Text(phases))
    lines.append(Text(safety(watched, now)))
    if scores := held_out(watched.evaluation):
        lines.append(Text(scores))
    if scores := benchmarks(watched.charts):
        lines.append(Text(scores))
    return lines + alarm_lines(watched)


def state(watched: WatchedRun, now: float) -> tuple[str, str]:
    """Whether the run is running, as a sentence and its style."""
    silence, longest = watched.seconds_since_log(now), watched.throughput().longest
    ago = "" if silence is None else f" {duration(silence)} ago"
    resume = "; --resume true resumes it" if watched.checkpoint else ""
    if watched.interrupted is not None:
        end = watched.interrupted
        return f"stopped {duration(now - end.time)} ago by {one_line(end.reason)}{resume}", "bold"
    if watched.ended_early:
        return f"stopped before its last step{resume}", "bold"
    if watched.over:
        return "finished", "bold"
    if watched.training_is_over:
        return f"training finished{ago}; no held-out accuracy after it yet", "bold"
    if not watched.lines:
        return f"started{ago}, no step logged yet", "bold"
    if longest is None:
        return f"last log line{ago}; too few lines yet for a throughput", "bold"
    if watched.is_stalled(now):
        return f"last log line{ago}, longest wait before {duration(longest)}: stuck or killed?", "bold red"
    return "running", "bold"


def progress(watched: WatchedRun) -> Text:
    planned, throughput = watched.planned_steps, watched.throughput()
    parts = [f"step {watched.step}"]
    if planned:
        share = min(1.0, watched.step / planned)
        filled = round(16 * share)
        parts = [f"step {watched.step} of {planned} {'█' * filled}{'░' * (16 - filled)} {100 * share:.0f} %"]
    if throughput.seconds_per_step is not None:
        parts.append(f"{duration(throughput.seconds_per_step)} a step")
    if throughput.tokens_per_second is not None:
        parts.append(f"{throughput.tokens_per_second:,.0f} tokens/s")
    if (
        planned
        and watched.step < planned
        and throughput.seconds_per_step is not None
        and not (watched.training_is_over or watched.over)
    ):
        parts.append(f"{duration((planned - watched.step) * throughput.seconds_per_step)} left")
    return Text(" · ".join(parts))


def phase_shares(line: dict[str, Any]) -> str:
    """Where the time of the newest logged steps went."""
    seconds = {phase: line[name] for phase, name in TIMES.items() if line.get(name)}
    total = sum(seconds.values())
    return " · ".join(f"{name} {100 * part / total:.0f} %" for name, part in seconds.items())


def safety(watched: WatchedRun, now: float) -> str:
    """Checkpoint and counters of things that should not happen."""
    parts = ["final weights in checkpoints/final"] if watched.has_final else []
    if watched.checkpoint is not None:
        step, moment = watched.checkpoint
        parts.append(f"checkpoint-{step}, {duration(now - moment)} ago")
    parts = parts or ["no checkpoint yet"]
    counters = {"steps skipped": GUARD_SKIPPED_STEPS, "grader timeouts": GRADER_TIMEOUTS}
    line = watched.last_line
    parts += [f"{name} {line[key]:.0f}" for name, key in counters.items() if line.get(key) is not None]
    if watched.resumed_from:
        parts.append(f"resumed from step {', '.join(map(str, watched.resumed_from[-3:]))}")
    return " · ".join(parts)


def held_out(evaluation: dict[str, Any]) -> str:
    scores = {when: evaluation[when]["accuracy"] for when in ("before", "after") if evaluation.get(when)}
    return (
        "held-out accuracy " + ", ".join(f"{when} {100 * score:.1f} %" for when, score in scores.items())
        if scores
        else ""
    )


def benchmarks(charts: Sequence[dict[str, Any]]) -> str:
    """The newest accuracies of the benchmarks that are evaluated during training."""
    lines = {chart["title"]: chart["series"][0] for chart in charts if chart["id"].startswith(SUITE_CHART)}
    newest = {task: line["values"][-1] for task, line in lines.items() if line["values"][-1] is not None}
    step = max((line["steps"][-1] for line in lines.values()), default=0)
    listed = ", ".join(f"{task} {100 * accuracy:.1f} %" for task, accuracy in newest.items())
    return f"benchmarks at step {step}: {listed}" if newest else ""


def alarm_lines(watched: WatchedRun) -> list[Text]:
    """Alarms that hold, and those that did; none is said too, in a word."""
    alarms = watched.alarms
    if not alarms:
        return [Text("alarms: none")] if watched.last_line else []
    holding = [f"{one_line(one['name'])} since step {one['first_step']}" for one in alarms if one["holds"]]
    earlier = [
        f"{one_line(one['name'])}, steps {one['first_step']} to {one['last_step']}"
        for one in alarms
        if not one["holds"]
    ]
    lines = [Text(f"ALARM: {'; '.join(holding)}", style="bold red")] if holding else []
    return lines + ([Text(f"earlier alarms: {'; '.join(earlier)}")] if earlier else [])


def charts_of(charts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are shown here, in their order."""
    drawn = {chart["id"]: chart for chart in charts}
    score = drawn.get("accuracy", drawn.get("reward"))
    return [chart for chart in [score, *(drawn.get(name) for name in CHARTS)] if chart is not None]


def chart_rows(charts: Sequence[dict[str, Any]], width: int, room: int) -> list[Text]:
    """Charts side by side and below each other, as many as fit into `room` lines; about half of them if all fit."""
    if not charts or width < LABEL_WIDTH + 3:
        return []
    across = min(MAX_CHART_COLUMNS, len(charts), max(1, (width + 1) // (CHART_WIDTH + 1)))
    down = -(-len(charts) // across)
    across = -(-len(charts) // down)  # rows alike
    plot_height = max(2, min(10, int(0.6 * room) // down - 1))
    cell_width = (width + 1) // across - 1
    lines: list[Text] = []
    for start in range(0, len(charts), across):
        if len(lines) + plot_height + 1 > room:
            break
        cells = [chart_cell(chart, cell_width, plot_height) for chart in charts[start : start + across]]
        lines += [Text(" ").join(parts) for parts in zip(*cells, strict=True)]
    return lines


def chart_cell(chart: dict[str, Any], width: int, height: int) -> list[Text]:
    """Title with the newest value, and `height` lines of curve with the values of top and bottom before it."""
    [line] = chart["series"]
    values = line["values"]
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    newest = "nan" if values[-1] is None else short(values[-1])
    title = set_cell_size(chart["title"], max(0, width - cell_len(newest) - 1))
    labels = [short(high), *[""] * (height - 2), short(low)]
    drawn = characters.curve(line["steps"], values, width=width - LABEL_WIDTH - 1, height=height, low=low, high=high)
    return [
        Text.assemble((title, "bold"), " ", newest),
        *(Text.assemble((f"{label:>{LABEL_WIDTH}} ", "dim"), row) for label, row in zip(labels, drawn, strict=True)),
    ]


def rollout_lines(rollout: dict[str, Any], width: int, room: int) -> list[Text]:
    """The rollout in at most `room` lines: question, verdict, focus by position, and its tokens shaded by focus."""
    facts = [
        VERDICTS[rollout["correct"]],
        f"expected {one_line(rollout['reference'][:width])}",
        f"{rollout['num_tokens']} tokens",
    ]
    if rollout["advantage"] is not None:
        facts.append(f"advantage {rollout['advantage']:+.2f}")
    focus = rollout["focus"]
    lines = [
        Text(f"── last stored rollout: step {rollout['step']} ".ljust(width, "─"), style="dim"),
        Text(one_line(rollout["question"][: 4 * width]).replace("<image>", "▣ ")),
        Text(" · ".join(facts)),
    ]
    if focus is not None and room > MIN_ROLLOUT_HEIGHT:
        known = [rho for rho in focus if rho is not None]
        scale = f"focus {min(known):.2f} to {max(known):.2f} "
        lines.append(Text(scale + characters.bars(focus, max(1, width - len(scale)))))
    return lines + token_lines(rollout, width, room - len(lines))


def token_lines(rollout: dict[str, Any], width: int, room: int) -> list[Text]:
    """The tokens, shaded by focus, those that passed the gate underlined; cut where `room` lines are full."""
    if not rollout["tokens"]:
        return [Text("(an empty response)", style="dim")]
    focus = rollout["focus"] or []
    known = [rho for rho in focus if rho is not None]
    text = Text()
    for i, token in enumerate(rollout["tokens"]):
        rho = focus[i] if i < len(focus) else None
        shade = "" if rho is None else SHADES[round(3 * characters.share(rho, min(known), max(known)))]
        gated = i < len(rollout["gate"]) and rollout["gate"][i]
        text.append(one_line(token), style=f"{shade} underline" if gated else shade)
        if len(text) > 2 * width * room:  # far more than fits
            break
    lines = list(text.wrap(Console(width=width), width, overflow="fold"))
    if len(lines) > room:
        lines = lines[:room]
        lines[-1].truncate(width - 1)
        lines[-1].append("…")
    return lines


def one_line(text: str) -> str:
    """Untrusted text on one line, with nothing in it that steers a terminal."""
    return visible(text).replace("\n", "↵").replace("\t", " ")
