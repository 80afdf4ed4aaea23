"""The result on top of a report, in words."""

import pytest

from tests.hostile.checks import Outline
from tests.hostile.texts import NASTY
from tests.report.run_records import answers, evaluation, fill
from vgpo.pages.verdict import difference_sentence, quoted, tone_of
from vgpo.report import render, report_data
from vgpo.report.held_out import HeldOut, HeldOutAnswer, change, compare
from vgpo.run import RunFolderError
from vgpo.text import visible

MINUS = "\N{MINUS SIGN}"


def held_out(*correct: bool) -> HeldOut:
    found = [HeldOutAnswer.model_validate(one) for one in answers(correct)]
    scores = {"accuracy": sum(correct) / len(correct), "low": 0.2, "high": 0.9, "num_questions": len(correct)}
    return HeldOut(None, scores, [], found)


def test_runs_are_compared_question_by_question():
    # Right on the same 200 of 400 questions, the second on 20 more: differences of 0 and 1, mean 0.05.
    first, second = held_out(*[True] * 200, *[False] * 200), held_out(*[True] * 220, *[False] * 180)
    found = compare(first, second)
    assert (found.points, found.basis) == (pytest.approx(0.05), "400 questions, paired")
    # 20 of 400: binomial standard error sqrt(0.05 * 0.95 / 400) = 0.0109; +- 1.96 of them, skewed to the right.
    assert (found.low, found.high) == (pytest.approx(0.03, abs=0.002), pytest.approx(0.0725, abs=0.002))
    unpaired = compare(first, held_out(*[True] * 11, *[False] * 9))
    assert unpaired.basis == "400 and 20 questions, unpaired"
    assert unpaired.points == pytest.approx(0.05)
    assert unpaired.low == pytest.approx(change(first.after, {**first.after, "accuracy": 0.55})["low"])


def test_the_verdict_of_two_runs_is_their_paired_difference(make_run):
    runs = [fill(make_run(name)) for name in ("dapo", "vgpo")]
    for folder, accuracy in zip(runs, (0.5, 0.55), strict=True):
        folder.write_evaluation({"after": evaluation(accuracy, 0.4, 0.6)})
    verdict = report_data([run.path for run in runs])["verdict"]
    assert verdict["headline"].startswith("vgpo is 5.0 points above dapo on held-out accuracy [+3.")
    assert verdict["headline"].endswith("(400 questions, paired)")
    assert (verdict["tone"], verdict["details"]) == ("gain", ["No run raised an alarm."])
    turned = report_data([run.path for run in reversed(runs)])["verdict"]
    assert turned["headline"].startswith(f"dapo is 5.0 points below vgpo on held-out accuracy [{MINUS}7.")
    assert turned["tone"] == "loss"


def test_the_verdict_of_many_runs_compares_each_with_the_first(make_run):
    runs = [fill(make_run(name)) for name in "abcd"]
    for folder in runs[:3]:
        folder.write_evaluation({"after": evaluation(0.5, 0.4, 0.6)})
    verdict = report_data([run.path for run in runs])["verdict"]
    assert verdict["headline"] == "2 runs against a on held-out accuracy"
    level = "{} is level with a on held-out accuracy [+0.0, +0.0] (400 questions, paired)."
    assert verdict["details"][:3] == [level.format("b"), level.format("c"), "Without held-out accuracy: d."]
    without = report_data([run.path for run in runs[2:]])["verdict"]
    assert without["headline"].startswith("Held-out accuracy was not measured in two runs")


def test_the_verdict_of_one_run_says_from_where_to_where(make_run):
    folder = fill(make_run())
    folder.write_evaluation({"before": evaluation(0.4, 0.35, 0.45), "after": evaluation(0.6, 0.52, 0.63)})
    folder.log_metrics({"step": 5, "reward": 1.0, "alarm/truncation": 1.0})
    verdict = report_data([folder.path])["verdict"]
    assert verdict["headline"] == (
        "Held-out accuracy went from 40.0 % to 60.0 %: +20.0 points [+10.6, +25.8] (400 questions)"
    )
    assert verdict["details"] == ["Training fixed 80 questions and broke 0.", "Alarms: truncation (step 5)."]
    assert verdict["tone"] == "gain"


def test_the_verdict_of_a_run_without_an_evaluation_is_its_curve(make_run):
    verdict = report_data([fill(make_run(), 10).path])["verdict"]
    assert verdict["headline"] == "Held-out accuracy was not measured"
    assert verdict["details"] == [
        "Training accuracy went from 10.0 % to 100.0 % (means of the first and the last tenth).",
        "No alarm was raised.",
    ]
    assert report_data([make_run("new").path])["verdict"]["details"] == []


def test_an_interval_that_holds_0_may_be_chance(make_run):
    folder = make_run()
    folder.write_evaluation({"before": evaluation(0.4, 0.3, 0.5), "after": evaluation(0.45, 0.35, 0.55)})
    verdict = report_data([folder.path])["verdict"]
    assert verdict["tone"] == "open"
    assert verdict["details"][0] == "The 95 % interval holds 0: the difference may be chance."


def test_a_damaged_answer_is_named(make_run):
    folder = make_run()
    scores = evaluation(0.4, 0.3, 0.5)
    scores["answers"][3].pop("completion")
    folder.write_evaluation({"after": scores})
    with pytest.raises(RunFolderError, match=r"evaluation\.json, after: answers\[3\], completion: missing; restore"):
        report_data([folder.path])


def test_a_difference_in_words():
    assert difference_sentence("B", "A", "x", -0.032, -0.05, 0.01, "9 rows") == (
        f"B is 3.2 points below A on x [{MINUS}5.0, +1.0] (9 rows)"
    )
    assert difference_sentence("B", "A", "x", 0.0001, None, None, "1 seed") == "B is level with A on x (1 seed)"
    tones = [tone_of(low, high) for low, high in ((0.1, 0.2), (-0.2, -0.1), (0.0, 0.1), (None, None))]
    assert tones == ["gain", "loss", "open", "open"]


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nasty_names_in_a_verdict_stay_text(make_run, text: str):
    data = report_data([fill(make_run()).path])
    pages = [
        Outline(render({**data, "verdict": {"tone": "gain", "headline": quoted(one), "details": [one]}}))
        for one in (text, "plain")
    ]
    assert pages[0].elements == pages[1].elements
    assert pages[0].other == []
    assert visible(quoted(text)) in pages[0].texts_of("h2")
