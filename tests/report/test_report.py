"""What a report holds, and that the page holds nothing else."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.report.run_records import ATTACKS, evaluation, fill, handed_over, hostile_run, rollout
from vgpo.focus.statistics import focus_by_decile
from vgpo.report import render, report_data, write_report
from vgpo.report.data import drop_abandoned_steps, mean_strength
from vgpo.run import RunFolderError

MAX_PAGE_BYTES = 5_000_000


def embedded(page: str) -> dict:
    return json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)[1])


def charts_of(data: dict) -> dict:
    return {chart["id"]: chart for chart in data["charts"]}


def test_data_of_two_runs(make_run):
    dapo, vgpo = (
        fill(make_run("dapo", shaping="none", lr=1, run_dir="a")),
        fill(make_run("vgpo", shaping="vgpo", lr=1, run_dir="b"), 3),
    )
    data = report_data([dapo.path, vgpo.path])
    assert data["version"] == 1
    assert [run["name"] for run in data["runs"]] == ["dapo", "vgpo"]
    assert [run["last_step"] for run in data["runs"]] == [4, 3]
    assert [run["num_rollouts"] for run in data["runs"]] == [12, 9]
    assert data["settings"] == [{"name": "shaping", "values": ["none", "vgpo"]}]
    assert charts_of(data)["entropy"]["series"] == [
        {"run": 0, "steps": [1, 2, 3, 4], "values": [1.0, 0.5, 0.33333, 0.25], "averaged": 1},
        {"run": 1, "steps": [1, 2, 3], "values": [1.0, 0.5, 0.33333], "averaged": 1},
    ]
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_benchmarks_during_training_have_a_chart_each(make_run):
    folder = fill(make_run())
    for step, accuracy in ((2, 0.25), (4, 0.5)):
        values = {"accuracy": accuracy, "no_box": 0.1, "truncated": 0.0}
        logs = {f"eval_suite/{task}/{part}": value for task in ("mmk12", "counting") for part, value in values.items()}
        folder.log_metrics({"step": step, "epoch": 0.1, "time": step, **logs})
    charts = charts_of(report_data([folder.path]))
    assert list(charts) == ["suite_counting", "suite_mmk12", "accuracy", "entropy"]
    assert charts["suite_mmk12"]["title"] == "mmk12"
    assert charts["suite_mmk12"]["series"] == [{"run": 0, "steps": [2, 4], "values": [0.25, 0.5], "averaged": 1}]


def test_only_charts_that_have_a_value(make_run):
    same = report_data([fill(make_run("a")).path])
    assert list(charts_of(same)) == ["accuracy", "entropy"]  # the reward is the accuracy
    other = fill(make_run("b"), reward=2.0, **{"focus/mean": math.nan, "sampling/groups_kept": 3})
    assert list(charts_of(report_data([other.path]))) == ["accuracy", "reward", "entropy"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"accuracy_reward": "my_score"}, 0.7),
        ({"filter_reward": "my_score"}, 0.7),
        ({}, 0.1),
    ],
)
def test_accuracy_is_that_of_the_reward_that_the_run_names(make_run, config: dict, expected: float):
    folder = make_run(**config)
    rewards = {"format_reward": 0.1, "my_score": 0.7}
    for kind, add in (("rewards", 0.0), ("eval_rewards", 0.2)):
        folder.log_metrics({"step": 1, **{f"{kind}/{name}/mean": add + value for name, value in rewards.items()}})
    charts = charts_of(report_data([folder.path]))
    assert [line["values"] for line in charts["accuracy"]["series"]] == [[expected]]
    assert [line["values"] for line in charts["held_out"]["series"]] == [[pytest.approx(expected + 0.2)]]


def test_share_of_groups_kept(make_run):
    folder = fill(make_run(), 1, **{"sampling/groups_kept": 3, "sampling/groups_drawn": 4})
    [line] = charts_of(report_data([folder.path]))["groups"]["series"]
    assert line["values"] == [0.75]


def test_long_curves_are_averaged(make_run):
    folder = make_run()
    folder.metrics_path.write_text("".join(f'{{"step": {step}, "entropy": {step}}}\n' for step in range(1, 1001)))
    [line] = charts_of(report_data([folder.path]))["entropy"]["series"]
    assert line["averaged"] == 3
    assert (line["steps"][:2], line["values"][:2]) == ([2, 5], [2.0, 5.0])
    assert (line["steps"][-1], line["values"][-1]) == (1000, 1000.0)


def test_what_is_not_finite_is_a_gap(make_run):
    folder = make_run()
    entropies = [None, 1.0, None, 2.0]
    folder.metrics_path.write_text(
        "".join(json.dumps({"step": i, "entropy": e}) + "\n" for i, e in enumerate(entropies))
    )
    folder.log_metrics({"step": 4, "loss": 1.0})  # says nothing of entropy: no gap
    folder.log_metrics({"step": 5, "entropy": math.nan, "sampling/groups_kept": math.nan, "sampling/groups_drawn": 3})
    charts = charts_of(report_data([folder.path]))
    assert list(charts) == ["entropy"]
    [line] = charts["entropy"]["series"]
    assert (line["steps"], line["values"]) == ([0, 1, 2, 3, 5], [None, 1.0, None, 2.0, None])


def test_a_mean_is_of_what_is_finite(make_run):
    folder = make_run()
    for step in range(1, 802):  # three a point
        folder.log_metrics({"step": step, "entropy": math.nan if step in (2, 4, 5, 6) else step})
    [line] = charts_of(report_data([folder.path]))["entropy"]["series"]
    assert (line["steps"][:3], line["values"][:3]) == ([2, 5, 8], [2.0, None, 8.0])


def test_a_resumed_run_replaces_the_steps_it_repeats():
    steps = [1, 2, 3, 3, 2, 3, 4]
    kept = drop_abandoned_steps([{"step": step, "line": line} for line, step in enumerate(steps)])
    assert [(line["step"], line["line"]) for line in kept] == [(1, 0), (2, 1), (2, 4), (3, 5), (4, 6)]


def test_alarms_are_listed_with_their_steps(make_run):
    folder = make_run("short")
    for step, alarms in enumerate([{}, {"alarm/zero_reward_std": 1.0}, {}, {"alarm/zero_reward_std": 1.0}], start=1):
        folder.log_metrics({"step": step, "reward": 1.0, **alarms})
    loud = {ATTACKS[2]: 1.0, f"alarm/{ATTACKS[2]}": 1.0}
    folder.log_metrics({"step": 5, **loud})
    data = report_data([folder.path, fill(make_run("quiet")).path])
    alike = {"name": "zero_reward_std", "num_lines": 2, "first_step": 2, "last_step": 4}
    assert data["runs"][0]["alarms"] == [alike, {"name": ATTACKS[2], "num_lines": 1, "first_step": 5, "last_step": 5}]
    assert data["runs"][1]["alarms"] == []
    page = render(data)
    assert "<b>zero_reward_std</b> on 2 logged line(s), steps 2 to 4; " in page
    assert "<b>&lt;img src=x" in page
    assert page.count("Alarms of") == 1


def test_change_has_newcombes_interval(make_run):
    folder = make_run()
    folder.write_evaluation({"before": evaluation(0.4, 0.35, 0.45), "after": evaluation(0.6, 0.52, 0.63)})
    result = report_data([folder.path])["runs"][0]["evaluation"]
    # below: sqrt((0.60 - 0.52)^2 + (0.45 - 0.40)^2) = 0.0943398; above: sqrt(0.03^2 + 0.05^2) = 0.0583095
    assert result["change"]["points"] == pytest.approx(0.2)
    assert result["change"]["low"] == pytest.approx(0.2 - 0.0943398)
    assert result["change"]["high"] == pytest.approx(0.2 + 0.0583095)
    assert "answers" not in result["after"]
    page = render(report_data([folder.path]))
    assert '<b>60.0</b> <span class="range">[52.0, 63.0]</span>' in page
    assert '<b>+20.0</b> <span class="range">[+10.6, +25.8]</span>' in page


@pytest.mark.parametrize(
    "stored", [None, {}, {"before": evaluation(0.4, 0.3, 0.5)}, {"after": evaluation(0.4, 0.3, 0.5)}]
)
def test_an_evaluation_may_be_missing(make_run, stored):
    folder = make_run()
    if stored is not None:
        folder.write_evaluation(stored)
    page = render(report_data([folder.path]))
    assert ("40.0" in page) == bool(stored)


def test_focus_by_decile():
    assert focus_by_decile([None] * 3) == [None] * 10
    assert focus_by_decile([0.1, 0.3]) == [0.1, None, None, None, None, 0.3, None, None, None, None]
    twenty = focus_by_decile([position / 20 for position in range(20)])
    assert twenty == pytest.approx([0.025 + 0.1 * decile for decile in range(10)])


def test_focus_curve_is_of_the_last_quarter(make_run):
    folder = make_run()
    for step in range(1, 9):
        measured = rollout(step, step, 1.0, tokens=["word"] * 10, focus=[step / 10] * 10)
        folder.write_rollouts(*handed_over([measured, rollout(step, step, 0.0, focus=None)]))
    curve = report_data([folder.path])["runs"][0]["focus_curve"]
    assert (curve["first_step"], curve["last_step"]) == (7, 8)
    assert curve["correct"] == {"values": [0.75] * 10, "num_rollouts": 2}
    assert curve["wrong"] == {"values": [None] * 10, "num_rollouts": 0}


def test_the_newest_rollouts_are_shown_one_of_each_outcome_per_group(make_run):
    shown = report_data([fill(make_run(), 9).path])["runs"][0]["rollouts"]
    assert [(entry["step"], entry["correct"]) for entry in shown] == [
        (step, correct) for step in (9, 8, 7, 6, 5, 4) for correct in (True, False)
    ]


def test_a_rollout_without_a_verdict_is_shown_as_neither(make_run):
    folder = make_run()
    folder.write_rollouts(*handed_over(rollout(1, 0, reward) for reward in (None, 0.0, 1.0)))
    run = report_data([folder.path])["runs"][0]
    assert [entry["correct"] for entry in run["rollouts"]] == [True, False, None]
    assert [run["focus_curve"][outcome]["num_rollouts"] for outcome in ("correct", "wrong")] == [1, 1]


def test_a_picture_that_is_gone_or_lies_elsewhere_is_not_read(make_run, tmp_path: Path):
    folder = make_run()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    folder.write_rollouts(*handed_over([rollout()]))
    [record] = folder.read_rollouts()
    (folder.path / record.media[0]).unlink()
    record.media.append("../secret.png")
    folder.rollouts_path.write_text(record.model_dump_json() + "\n")
    assert list(report_data([folder.path])["images"].values()) == [None, None]


def test_a_run_without_shaping_has_no_factors(make_run):
    folder = make_run()
    unshaped = rollout(focus=None, gate=None, token_factor=None, rollout_factor=None)
    folder.write_rollouts(*handed_over([unshaped]))
    [entry] = report_data([folder.path])["runs"][0]["rollouts"]
    assert [entry[name] for name in ("focus", "token_factor", "rollout_factor", "gate")] == [None, None, None, []]


def test_runs_must_be_given_once_each(make_run, tmp_path: Path):
    folder = make_run()
    with pytest.raises(RunFolderError, match="found no run"):
        report_data([])
    with pytest.raises(RunFolderError, match="given twice"):
        report_data([folder.path, folder.path / "."])
    with pytest.raises(RunFolderError, match="found 9 runs, expected at most 8"):
        report_data([tmp_path / str(number) for number in range(9)])
    with pytest.raises(RunFolderError, match="is not a run folder"):
        report_data([tmp_path / "nothing"])


def test_runs_of_the_same_name_are_told_apart(make_run):
    runs = [make_run("a/vgpo").path, make_run("b/vgpo").path]
    assert [run["name"] for run in report_data(runs)["runs"]] == ["a/vgpo", "b/vgpo"]


def test_the_page_is_drawn_from_the_data_alone(make_run, tmp_path: Path):
    folder = fill(make_run())
    out = write_report([folder.path], tmp_path / "new" / "report.html")
    page = out.read_text()
    assert out == tmp_path / "new" / "report.html"
    assert embedded(page) == report_data([folder.path])
    assert render(embedded(page)) == page


def test_a_page_that_cannot_be_written_says_so(make_run, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunFolderError, match=r"file/report\.html could not be written: .*Correct what the error names"
    ):
        write_report([make_run().path], tmp_path / "file" / "report.html")


def test_an_empty_run_says_so(make_run):
    page = render(report_data([make_run().path]))
    for sentence in (
        "No run here has been evaluated",
        "No metrics have been logged yet",
        "No rollouts have been stored",
    ):
        assert sentence in page


class Tags(HTMLParser):
    """The tags, and the text of the page outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_text_of_the_model_cannot_leave_its_place(make_run, tmp_path: Path):
    page = write_report([hostile_run(make_run).path], tmp_path / "report.html").read_text()
    tags = [tag for tag, _ in Tags(page).tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert page.count("</script>") == 2
    assert not set(page) & set("\u2028\u2029\x00\x1b\u202e")
    shown = embedded(page)["runs"][0]["rollouts"]
    assert shown[0]["tokens"][1:] == ATTACKS
    assert {entry["question"] for entry in shown} == set(ATTACKS)


def test_a_page_stays_small_whatever_the_rollouts_hold(make_run, tmp_path: Path):
    folder = make_run()
    noise = Image.effect_noise((600, 560), 100).convert("RGB")
    for group in range(3):
        picture = noise.transpose(group)
        long = {"tokens": ["x" * 1_000_000, *["word"] * 5000], "focus": [0.123456789] * 5001}
        long |= {"gate": [False] * 5001, "token_factor": [1.23456789] * 5001}
        folder.write_rollouts(
            *handed_over([rollout(1, group, reward, images=[picture], **long) for reward in (1.0, 0.0)])
        )
    out = write_report([folder.path], tmp_path / "report.html")
    data = embedded(out.read_text())
    assert out.stat().st_size < MAX_PAGE_BYTES
    [first, *_] = data["runs"][0]["rollouts"]
    assert first["tokens"][0].endswith("[…999,600 more characters]")
    assert (len(first["tokens"]), first["num_tokens"]) == (4096, 5001)
    assert all(max(image["width"], image["height"]) == 512 for image in data["images"].values())


def test_rollouts_beyond_the_budget_are_left_out(make_run, monkeypatch: pytest.MonkeyPatch):
    folder = fill(make_run(), 9)
    everything = report_data([folder.path])
    size = len(json.dumps([everything["runs"][0]["rollouts"], everything["images"]]))
    monkeypatch.setattr("vgpo.report.data.ROLLOUT_BYTES", size // 2)
    fitting = report_data([folder.path])
    assert 4 <= len(fitting["runs"][0]["rollouts"]) <= 6
    shown = {name for entry in fitting["runs"][0]["rollouts"] for name in entry["images"]}
    assert shown == set(fitting["images"])


def test_the_page_asks_nothing_of_the_network(make_run):
    page = render(report_data([fill(make_run()).path]))
    without_data = re.sub(r'id="report-data">.*?</script>', "></script>", page, flags=re.DOTALL)
    assert re.findall(r"https?:|\bsrc=|\bhref=|url\(|@import", without_data) == []
    policies = [attrs["content"] for tag, attrs in Tags(page).tags if "http-equiv" in attrs]
    assert policies[0].startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policies[0]


def test_the_strength_of_a_run_with_strata_is_their_mean() -> None:
    assert mean_strength({"adaptive/strength": 0.5, "adaptive/correlation": 0.1}) == 0.5
    assert mean_strength({"adaptive/strength/a": 0.0, "adaptive/strength/b": 1.0, "loss": 2.0}) == 0.5
    assert mean_strength({"adaptive/strength/a": None, "loss": 2.0}) is None
