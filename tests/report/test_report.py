"""What a report holds, and that the page holds nothing else."""

import json
import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.pages.columns import unexplained_columns
from tests.report.run_records import ATTACKS, answers, evaluation, fill, handed_over, hostile_run, rollout
from vgpo.focus.statistics import focus_by_decile
from vgpo.report import render, report_data, write_report
from vgpo.report.data import drop_abandoned_steps, mean_strength
from vgpo.report.settings import settings_table
from vgpo.run import RunFolder, RunFolderError
from vgpo.run.defaults import changed_defaults

MAX_PAGE_BYTES = 5_000_000


def embedded(page: str) -> dict:
    return json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)[1])


def charts_of(data: dict) -> dict:
    return {chart["id"]: chart for chart in data["charts"]}


def test_every_column_of_numbers_has_a_tooltip(make_run):
    runs = [fill(make_run(name, learning_rate=1e-5), 3) for name in ("dapo", "vgpo")]
    runs[0].write_evaluation({"before": evaluation(0.4, 0.35, 0.45), "after": evaluation(0.6, 0.55, 0.65)})
    page = render(report_data([folder.path for folder in runs]))
    assert page.count("<table") == 3
    assert unexplained_columns(page) == []


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
    assert [one["name"] for one in data["settings"] if one["marked"]] == ["shaping"]
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


def steps_shown(data: dict) -> list[int]:
    return list(dict.fromkeys(entry["step"] for entry in data["runs"][0]["rollouts"]))


def test_full_groups_are_shown_of_steps_spread_over_the_run(make_run):
    short = report_data([fill(make_run("short"), 13).path])
    assert steps_shown(short) == list(range(1, 14))
    assert [entry["correct"] for entry in short["runs"][0]["rollouts"]] == [True, True, False] * 13
    # From 14 logged steps on every second is kept, from 27 on every fourth, and always the newest.
    assert steps_shown(report_data([fill(make_run("long"), 30).path])) == [1, 5, 9, 13, 17, 21, 25, 29, 30]


def test_of_a_step_the_first_group_is_shown(make_run):
    folder = make_run()
    folder.write_rollouts(*handed_over(rollout(5, group, 1.0) for group in (7, 8, 7)))
    [first, second] = report_data([folder.path])["runs"][0]["rollouts"]
    assert (first["group"], second["group"]) == (7, 7)


def test_a_rollout_without_a_verdict_is_shown_as_neither(make_run):
    folder = make_run()
    folder.write_rollouts(*handed_over(rollout(1, 0, reward) for reward in (None, 0.0, 1.0)))
    run = report_data([folder.path])["runs"][0]
    assert [entry["correct"] for entry in run["rollouts"]] == [None, False, True]
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


def test_groups_beyond_the_budget_are_left_out(make_run, monkeypatch: pytest.MonkeyPatch):
    folder = fill(make_run(), 9)
    everything = report_data([folder.path])
    size = len(json.dumps([everything["runs"][0]["rollouts"], everything["images"]]))
    monkeypatch.setattr("vgpo.report.data.ROLLOUT_BYTES", size // 2)
    fitting = report_data([folder.path])
    # The newest, the first, and then from new to old.
    assert steps_shown(fitting) in ([1, 7, 8, 9], [1, 6, 7, 8, 9])
    assert len(fitting["runs"][0]["rollouts"]) == 3 * len(steps_shown(fitting))
    shown = {name for entry in fitting["runs"][0]["rollouts"] for name in entry["images"]}
    assert shown == set(fitting["images"])


def test_all_other_metrics_are_kept(make_run):
    runs = [fill(make_run(name), 4, **metrics) for name, metrics in (("a", {"loss": -0.5}), ("b", {"note": 2}))]
    runs[0].log_metrics({"step": 5, "alarm/truncation": 1.0, "said": "text", "done": True, "loss": math.nan})
    runs[1].log_metrics({"step": 400, "adaptive/strength/a": 0.25})
    found = report_data([folder.path for folder in runs])["metrics"]
    charts = {chart["title"]: chart for chart in found["charts"]}
    # Entropy and accuracy have charts. The reward is the accuracy, and so has none of its own.
    names = [
        "adaptive/strength/a",
        "alarm/truncation",
        "epoch",
        "loss",
        "note",
        "reward",
        "rewards/accuracy_reward/mean",
    ]
    assert list(charts) == [*names, "time"]
    [loss] = charts["loss"]["series"]
    assert (loss["run"], found["steps"][loss["steps"]], loss["values"]) == (0, [1, 2, 3, 4, 5], [-0.5] * 4 + [None])
    assert [line["run"] for line in charts["epoch"]["series"]] == [0, 1]
    assert charts["alarm/truncation"]["unit"] == "1 while active"
    assert charts["adaptive/strength/a"]["caption"]
    assert "`" not in charts["alarm/truncation"]["caption"]


def test_all_settings_are_kept_and_the_first_ones_first(make_run):
    config = {"max_grad_norm": 1.0, "bf16": False, "lora": {"r": 2}, "learning_rate": 1e-5, "top_k": None}
    runs = [make_run("a", **config), make_run("b", **{**config, "bf16": True})]
    table = report_data([folder.path for folder in runs])["settings"]
    assert [(one["name"], one["values"]) for one in table] == [
        ("learning_rate", ["1e-05", "1e-05"]),
        ("command", ["vgpo train", "vgpo train"]),
        ("bf16", ["false", "true"]),
        ("max_grad_norm", ["1.0", "1.0"]),
        ("lora.r", ["2", "2"]),
        ("top_k", ["null", "null"]),
    ]
    assert [one["name"] for one in table if one["marked"]] == ["bf16"]


def test_settings_of_one_run_are_marked_if_the_command_line_set_them():
    command = ["vgpo", "train", "--config", "it.yaml", "--learning_rate=1e-5", "--beta", "0.1"]
    table = settings_table([{"learning_rate": 1e-5, "beta": 0.1, "bf16": True}], [command])
    assert [one["name"] for one in table if one["marked"]] == ["learning_rate", "beta"]
    assert table[1]["values"] == ["vgpo train --config it.yaml --learning_rate=1e-5 --beta 0.1"]


def test_settings_of_one_run_that_differ_from_their_default_are_marked_and_have_it():
    config = {"learning_rate": 1e-5, "beta": 0.1, "bf16": True, "run_dir": "here", "lora": {"r": 2}}
    command = ["vgpo", "train", "it.yaml", "--beta", "0.1"]
    defaults = {"learning_rate": 1e-6, "beta": 0.0, "run_dir": None, "lora": {"r": 8}}
    table = settings_table([config], [command], defaults)
    assert {one["name"]: (one["marked"], one["default"]) for one in table} == {
        "learning_rate": ("not the default", "1e-06"),
        "beta": ("command line", "0.0"),
        "bf16": ("", None),
        "run_dir": ("", "null"),
        "lora.r": ("not the default", "8"),
        "command": ("", None),
    }
    assert not any(one["default"] for one in settings_table([config] * 2, [command] * 2, defaults))


def test_defaults_are_those_that_the_run_recorded(make_run):
    @dataclass
    class Settings:
        name: str
        rate: float = 0.5
        names: list[str] = field(default_factory=list)
        path: str | None = None

    changed = changed_defaults([Settings("a", path="x")], derived=[Settings("b", rate=1.0)])
    assert changed == {"rate": 0.5, "path": None}
    assert changed_defaults([], derived=[Settings("b", path="x", names=["y"])]) == {"names": []}
    path = make_run().path.with_name("with-defaults")
    folder = RunFolder.create(path, {"rate": 1.0, "beta": 0.1}, seed=0, command=["vgpo"], defaults=changed)
    page = render(report_data([folder.path]))
    assert re.search(r'not the default</span></th><td>1.0</td><td class="none">0.5</td>', page)
    assert "those that differ from their default" in page
    assert "those that differ from their default" not in render(report_data([make_run("old").path]))


def test_questions_say_what_training_changed(make_run):
    folder = make_run()
    before, after = (evaluation(0.5, 0.4, 0.6) for _ in range(2))
    before["answers"] = answers([True, False, True, False])
    after["answers"] = answers([True, True, False, False])
    folder.write_evaluation({"before": before, "after": after})
    found = report_data([folder.path])["runs"][0]["held_out"]
    assert [(one["number"], one["outcome"]) for one in found["entries"]] == [
        (2, "fixed"), (3, "broken"), (4, "wrong"), (1, "right")
    ]  # fmt: skip
    assert found["counts"] == {"right": 1, "fixed": 1, "broken": 1, "wrong": 1}
    assert found["is_paired"]
    assert found["entries"][0]["before"]["predicted"] == "no"
    folder.write_evaluation({"before": evaluation(0.5, 0.4, 0.6), "after": after})  # other questions
    found = report_data([folder.path])["runs"][0]["held_out"]
    assert not found["is_paired"]
    assert found["counts"] == {"right": 2, "wrong": 2}
    assert found["entries"][0]["before"] is None
    folder.write_evaluation({"before": {**before, "answers": []}})
    assert report_data([folder.path])["runs"][0]["held_out"] is None


def test_questions_beyond_the_budget_are_left_out_and_counted(make_run, monkeypatch: pytest.MonkeyPatch):
    folder = make_run()
    folder.write_evaluation({"before": evaluation(0.4, 0.3, 0.5), "after": evaluation(0.45, 0.4, 0.5)})
    monkeypatch.setattr("vgpo.report.data.HELD_OUT_BYTES", 9_000)
    data = report_data([folder.path])
    found = data["runs"][0]["held_out"]
    assert [one["outcome"] for one in found["entries"][:20]] == ["fixed"] * 20
    assert 20 < len(found["entries"]) < 40
    assert f"{len(found['entries'])} of 400 questions fit into the page" in render(data)


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
