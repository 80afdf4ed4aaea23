"""The result of one run, or of several, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from vgpo.pages.texts import percent, points, points_interval
from vgpo.pages.verdict import Verdict, chance_note, difference_sentence, quoted, tone_of
from vgpo.report.held_out import HeldOut, compare, newcombe

MEASURE = "held-out accuracy"


def report_verdict(
    runs: Sequence[Mapping[str, Any]], held_out: Sequence[HeldOut | None], charts: Sequence[Mapping[str, Any]]
) -> Verdict:
    """What a report says on top.

    Args:
        runs: As in `report_data`.
        held_out: Of each run.
        charts: As in `report_data`.
    """
    alarms = [alarm_sentence(runs)] if charts else []
    if len(runs) == 1:
        found = run_verdict(held_out[0], charts)
    else:
        found = runs_verdict([run["name"] for run in runs], held_out)
    return Verdict(found.tone, found.headline, [*found.details, *alarms])


def run_verdict(held_out: HeldOut | None, charts: Sequence[Mapping[str, Any]]) -> Verdict:
    """From where to where a run went."""
    if held_out is not None and held_out.before is not None and held_out.after is not None:
        return change_verdict(held_out, held_out.before, held_out.after)
    details = curve_sentences(charts)
    measured = {"after": held_out.after, "before": held_out.before} if held_out is not None else {}
    for when, found in measured.items():
        if found is not None:
            interval = f"[{percent(found['low'])}, {percent(found['high'])}]"
            headline = f"Held-out accuracy is {percent(found['accuracy'])} % {interval} {when} training"
            return Verdict("open", f"{headline} ({found['num_questions']:,} questions)", details)
    return Verdict("open", "Held-out accuracy was not measured", details)


def change_verdict(held_out: HeldOut, before: Mapping[str, Any], after: Mapping[str, Any]) -> Verdict:
    """How training changed the held-out accuracy."""
    change = newcombe(before, after)
    low, high = change["low"], change["high"]
    headline = (
        f"Held-out accuracy went from {percent(before['accuracy'])} % to {percent(after['accuracy'])} %: "
        f"{points(change['points'])} points {points_interval(low, high)} ({after['num_questions']:,} questions)"
    )
    details = chance_note(low, high)
    if held_out.is_paired:
        outcomes = held_out.outcomes()
        details.append(f"Training fixed {outcomes.count('fixed')} questions and broke {outcomes.count('broken')}.")
    return Verdict(tone_of(low, high), headline, details)


def curve_sentences(charts: Sequence[Mapping[str, Any]]) -> list[str]:
    """From where to where the accuracy of one run went during training, if it was logged."""
    by_id = {chart["id"]: chart for chart in charts}
    for name, subject in (("held_out", "Held-out accuracy during training"), ("accuracy", "Training accuracy")):
        values = [value for value in by_id[name]["series"][0]["values"] if value is not None] if name in by_id else []
        if len(values) > 1:
            first, last = (percent(mean) for mean in ends(values))
            return [f"{subject} went from {first} % to {last} % (means of the first and the last tenth)."]
    return []


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The means of the first and the last tenth."""
    number = max(1, (len(values) + 5) // 10)
    return sum(values[:number]) / number, sum(values[-number:]) / number


def runs_verdict(names: Sequence[str], held_out: Sequence[HeldOut | None]) -> Verdict:
    """The other runs against the first one."""
    base, name_of_base = held_out[0], names[0]
    differences = [None if base is None or other is None else compare(base, other) for other in held_out[1:]]
    found = [(name, one) for name, one in zip(names[1:], differences, strict=True) if one is not None]
    if not found:
        return Verdict("open", "Held-out accuracy was not measured in two runs, so that none can be compared")
    sentences = [
        difference_sentence(name, name_of_base, MEASURE, one.points, one.low, one.high, one.basis)
        for name, one in found
    ]
    if len(names) == 2:
        [(_, one)] = found
        return Verdict(tone_of(one.low, one.high), sentences[0], chance_note(one.low, one.high))
    left_out = [quoted(name) for name, one in zip(names[1:], differences, strict=True) if one is None]
    notes = [f"Without held-out accuracy: {', '.join(left_out)}."] if left_out else []
    headline = f"{len(found)} runs against {quoted(name_of_base)} on {MEASURE}"
    return Verdict("open", headline, [*(f"{sentence}." for sentence in sentences), *notes])


def alarm_sentence(runs: Sequence[Mapping[str, Any]]) -> str:
    """Which alarms were raised, and when."""
    raised = [
        (run["name"], ", ".join(f"{quoted(alarm['name'])} ({steps_of(alarm)})" for alarm in run["alarms"]))
        for run in runs
        if run["alarms"]
    ]
    if not raised:
        return "No alarm was raised." if len(runs) == 1 else "No run raised an alarm."
    if len(runs) == 1:
        return f"Alarms: {raised[0][1]}."
    return f"Alarms: {'; '.join(f'{quoted(name)}: {alarms}' for name, alarms in raised)}."


def steps_of(alarm: Mapping[str, Any]) -> str:
    first, last = alarm["first_step"], alarm["last_step"]
    return f"step {first}" if first == last else f"steps {first} to {last}"
