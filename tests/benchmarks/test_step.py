"""The step benchmark measures what it says: equal work, exact prompts, named contenders, an image of it all."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import chart, contest, growth, models, step, turns

from vgpo.toy.model import build_tokenizer

TINY = models.tiny(models.BENCHES["cpu"])


def plan(steps: int, bench: models.Bench = TINY, **changes: Any) -> contest.Plan:
    return contest.Plan(bench, (), steps, seed=3, device="cpu", **changes)


def work(plan: contest.Plan, group: int = 2) -> contest.Workload:
    return contest.random_workload(plan, next(iter(plan.bench.cases.values())), group)


def measure(plan: contest.Plan, group: int = 2) -> list[dict[str, Any]]:
    own = work(plan, group)
    return step.measure(own, plan, contest.lineup(own.micro_batches, frozen=plan.frozen))


def grad_norms(contender: turns.Contender) -> list[float]:
    return [entry["grad_norm"] for entry in contender.trainer.state.log_history if "grad_norm" in entry]


def without_shaping(entrants: dict[str, contest.Entrant]) -> dict[str, contest.Entrant]:
    """With the gradients of TRL's trainer."""
    return {
        name: contest.Entrant(one.kind, one.micro_batch, {**one.settings, "shaping": "none"} if "VGPO" in name else {})
        for name, one in entrants.items()
    }


@pytest.mark.train
@pytest.mark.parametrize("micro_batches", [(4,), (4, 2, 1)])
def test_every_contender_does_the_work_of_grpo(micro_batches: tuple[int, ...]) -> None:
    """Without a shaping all have the gradients of TRL's trainer: same rollouts, same prompts, same loss."""
    planned = plan(steps=1, micro_batches=micro_batches)
    own = work(planned, group=4)
    contenders = contest.compare(own, planned, without_shaping(contest.lineup(own.micro_batches, frozen=False)))
    expected = grad_norms(contenders["GRPO@4"])
    assert len(expected) == 3
    assert min(expected) > 0
    for contender in contenders.values():
        assert grad_norms(contender) == pytest.approx(expected, rel=1e-4)
        assert contender.peak_bytes > 0


def test_the_lineup_has_rivals_at_the_largest_micro_batch_and_at_one() -> None:
    assert list(contest.lineup((8,), frozen=False)) == ["GRPO@8", "VGPO@8", "VGPO off@8"]
    assert list(contest.lineup((1,), frozen=False)) == ["GRPO@1", "VGPO@1", "VGPO off@1"]
    assert list(contest.lineup((8, 2), frozen=False)) == ["GRPO@8", "VGPO@8", "VGPO@2"]
    assert list(contest.lineup((8, 1), frozen=True)) == ["GRPO@8", "VGPO@8", "VGPO@1", "GRPO@1", "VGPO tower@8"]


@pytest.mark.train
def test_a_row_holds_ratios_of_counted_rounds() -> None:
    (row,) = measure(plan(steps=2))
    assert (row["group"], row["prompt"], row["visual"], row["response"], row["rollouts"]) == (2, 24, 9, 5, 2)
    assert row["floor"] == pytest.approx((24 + 2 * 5) / (2 * (24 + 5)))
    for ratio in row["ratios"].values():
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    for phases in row["seconds"].values():
        assert phases["step"] > phases["update"] > phases["generation"] / 100 > 0
        assert phases["gradient"] > 0
        assert phases["scoring"] == 0  # neither trainer needs an old policy's pass
    assert row["images"] == {"GRPO": 4, "VGPO": 2, "VGPO off": 4}  # to generate and to train


@pytest.mark.slow
def test_a_round_has_all_updates_of_a_generation() -> None:
    """Rollouts become old then: both trainers score them once more, without gradient."""
    (row,) = measure(plan(steps=1, updates=2, cpu_time=True))
    for phases in row["seconds"].values():
        assert min(phases.values()) > 0
    assert row["images"] == {"GRPO": 12, "VGPO": 6, "VGPO off": 12}  # of 2 groups: to generate, to score, to train


@pytest.mark.train
def test_a_row_of_each_micro_batch_is_compared_with_the_largest() -> None:
    rows = measure(plan(steps=1, micro_batches=(2, 1)))
    assert [row["micro_batch"] for row in rows] == [2, 1]
    same = {"time_ratio", "gradient_ratio", "generation_ratio", "step_ratio"}
    assert [set(row["ratios"]) - same for row in rows] == [set(), {"own_ratio", "rival_ratio"}]
    ones = rows[1]["peak_bytes"]
    assert rows[1]["single_memory_ratio"] == ones["VGPO"] / ones["GRPO"]
    assert rows[1]["rival_memory_ratio"] == ones["GRPO"] / rows[0]["peak_bytes"]["GRPO"]


@pytest.mark.train
def test_frozen_parts_are_frozen_in_every_contender() -> None:
    planned = plan(steps=1, frozen=True)
    own = work(planned)
    contenders = contest.compare(own, planned, contest.lineup(own.micro_batches, frozen=True))
    for contender in contenders.values():
        trained = {name for name, p in contender.trainer.model.named_parameters() if p.requires_grad}
        assert trained
        assert not any("visual" in name for name in trained)
    assert step.ratios_at(2, own, contenders)["tower_ratio"]["median"] > 0
    step.check_tower(contenders, 2)
    with pytest.raises(
        RuntimeError, match="encoded 1 images a round where its outputs are kept, and 1 where they are"
    ):
        step.check_tower(contenders | {"VGPO tower@2": contenders["VGPO@2"]}, 2)


def test_a_tower_that_cannot_be_run_each_time_is_an_error() -> None:
    with pytest.raises(NotImplementedError, match=r"SimpleNamespace has no attribute .* Name the switch in"):
        contest.run_tower_each_time(SimpleNamespace())


def test_a_phase_inside_of_another_one_interrupts_it() -> None:
    times = iter([0.0, 10.0, 11.0, 13.0, 17.0, 25.0, 41.0])
    stopwatch = turns.Stopwatch(lambda: next(times))  # reads 0
    stopwatch.start()  # 10
    with stopwatch.phase("gradient"):  # 11
        scoring = turns.timed(lambda: None, "scoring", stopwatch)
        scoring()  # with a gradient: a part of its phase
        with torch.no_grad():
            scoring()  # 13 to 17
    # 25, and 41 in the end
    assert stopwatch.stop() == {"generation": 0, "scoring": 4, "gradient": 2 + 8, "other": 1 + 16}


ALL = models.BENCHES | models.MODELS


@pytest.mark.parametrize("name", ALL)
def test_prompts_have_the_tokens_of_their_case(name: str) -> None:
    for case in ALL[name].cases.values():
        assert 2 * case.side**2 > case.prompt  # the image is the greater part
        lengths = models.mean_lengths(models.random_prompts(case, 1, seed=0), models.processor_for(case))
        assert lengths == (case.prompt, case.side**2)


@pytest.mark.parametrize(("name", "billions"), [("qwen2_5_vl_3b", 3.75), ("qwen2_5_vl_7b", 8.29)])
def test_models_of_real_size_have_their_parameters(name: str, billions: float) -> None:
    model = models.random_model(models.MODELS[name], build_tokenizer(), seed=0, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(1e9 * billions, rel=0.002)


def test_twins_share_weights_and_nothing_else() -> None:
    model = models.random_model(TINY, build_tokenizer(), seed=0)
    twin = models.twin(model)
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert other is not parameter
        assert other.data_ptr() == parameter.data_ptr()
    twin.get_input_embeddings().weight.sum().backward()
    assert model.get_input_embeddings().weight.grad is None


@pytest.mark.train
@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_of_real_size_runs_whole(name: str) -> None:
    """Shrunk, with everything else: bf16, gradient checkpointing, responses that are drawn at random."""
    (row,) = measure(plan(steps=2, bench=models.tiny(models.MODELS[name])))
    assert set(row["ratios"]) == {"time_ratio", "gradient_ratio", "step_ratio", "off_ratio"}
    assert row["memory_ratio"] > 0


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a tiny benchmark by the command line; returns what it printed, its last line, and what it wrote."""

    def call(*words: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        file = tmp_path / "step.json"
        words = ("--device", "cpu", "--tiny", "--steps", "1", "--seed", "5", "--json", str(file), *words)
        monkeypatch.setattr("sys.argv", ["step.py", *words])
        step.main()
        out = capsys.readouterr().out
        *lines, last = out.splitlines()
        assert max(map(len, lines)) <= 119
        return out, json.loads(last), json.loads(file.read_text(encoding="utf-8"))

    return call


@pytest.mark.train
def test_a_call_ends_in_figures_and_where_they_come_from(call: Any) -> None:
    out, line, written = call("--model", "qwen2_5_vl_3b")
    assert set(line["paper"]) == {"time_ratio", "memory_ratio", "floor", "off_ratio"}
    assert line["environment"]["seed"] == 5
    assert re.search(r"paper, G 8: memory_ratio 0\.\d{3}, goal at most 0.5\n", out)
    assert [(row["case"], row["group"]) for row in written["results"]] == [("paper", 8)]
    assert torch.__version__.startswith(written["environment"]["versions"]["torch"])


@pytest.mark.slow
def test_tables_have_a_line_for_each_micro_batch_and_for_each_trainer(call: Any) -> None:
    out, line, written = call("--cases", "balanced", "--groups", "2", "--micro-batches", "1", "2", "--cpu-time")
    assert set(line) == {"environment"}  # its figures are those of groups of 8
    assert written["cpu_time"] is True
    lines = [row.split() for row in out.splitlines() if row.startswith("balanced  ")]
    ratios, phases = lines[:2], lines[2:]
    assert [row[:7] for row in ratios] == [["balanced", "2", "24", "9", "5", rows, "0.586"] for rows in ("2", "1")]
    assert [row[:4] for row in phases] == [
        ["balanced", "2", "2", "GRPO"], ["balanced", "2", "2", "VGPO"],
        ["balanced", "2", "1", "VGPO"], ["balanced", "2", "1", "GRPO"],
    ]  # fmt: skip
    for row in phases:
        *parts, whole = map(float, row[4:9])
        assert sum(parts) == pytest.approx(whole, abs=0.003)


@pytest.mark.slow
def test_growth_prints_slopes_of_both_trainers(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ladders = growth.Ladders(growth.TINY.middle, {"side": growth.TINY.steps["side"]})
    monkeypatch.setattr(growth, "TINY", ladders)
    out, line, written = call("--growth")
    assert set(line["image tokens"]) == {"update", "generation", "memory"}
    assert [point["side"] for point in written["points"]] == [4, 9, 16]
    for row in written["growth"]:
        for trainer in ("VGPO", "GRPO"):
            assert row[trainer]["low"] <= row[trainer]["slope"] <= row[trainer]["high"]
    assert re.search(r"image tokens +4, 9, 16 +update +-?\d+\.\d\d \[", out)


def test_what_is_left_out_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(*words: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["step.py", *words])
        return [f"{case} {group}" for case, group in step.parse_plan()[0].runs]

    assert runs("--device", "cuda") == ["image_heavy 4", "image_heavy 8", "image_heavy 16"]
    assert runs("--device", "cpu", "--groups", "4") == ["image_heavy 4", "balanced 4", "text_heavy 4", "embedded 8"]
    assert runs("--device", "cuda", "--cases", "embedded", "balanced", "--groups", "2") == ["balanced 2", "embedded 8"]
    assert runs("--device", "cuda", "--model", "qwen2_5_vl_7b") == ["paper 8"]
    assert runs("--device", "cpu", "--micro-batches", "8", "1", "--cases", "balanced") == ["balanced 8"]
    assert runs("--device", "cpu", "--frozen", "--cases", "balanced") == ["balanced 8"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model qwen2_5_vl_7b --cases embedded", "--cases embedded: expected some of paper"),
        (
            "--micro-batches 8 3",
            "--micro-batches 3: expected divisors of the 8 rollouts that a step of image",
        ),
        ("--updates-per-generation 0", "--updates-per-generation 0: expected 1 or more"),
        ("--growth --micro-batches 8", "--growth chooses the cases itself"),
        ("--growth --cases balanced", "--growth chooses the cases itself"),
        ("--device cuda --cpu-time", "--cpu-time with --device cuda: expected --device cpu"),
    ],
)
def test_options_that_do_not_fit_are_named(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["step.py", *words.split()])
    with pytest.raises(SystemExit):
        step.parse_plan()
    assert message in capsys.readouterr().err


@pytest.mark.train
def test_a_failing_trainer_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        raise ArithmeticError("no reward")

    monkeypatch.setattr(contest, "checksum", broken)
    with pytest.raises(ArithmeticError, match="no reward"):
        measure(plan(steps=1))


def result(case: str, group: int, time: float, micro_batch: int = 0, largest: int = 0) -> dict[str, Any]:
    ratio = {"low": time - 0.05, "median": time, "high": time + 0.05}
    names = ("time_ratio", "generation_ratio", "step_ratio", "off_ratio")
    return {
        "case": case, "group": group, "prompt": 300, "visual": 256, "response": 75, "rollouts": group, "floor": 0.3,
        "memory_ratio": 0.5, "ratios": dict.fromkeys(names, ratio),
        "micro_batch": micro_batch or group, "largest": largest or group,
    }  # fmt: skip


def test_the_headline_is_that_of_groups_of_eight() -> None:
    results = [
        result("image_heavy", 4, 0.7),
        result("image_heavy", 8, 0.4),
        result("image_heavy", 8, 0.5, micro_batch=2, largest=8),
        result("image_heavy", 16, 0.3),
        result("embedded", 8, 0.9),
    ]
    lines = step.headline(results)
    assert list(lines) == ["image_heavy", "image_heavy@2", "embedded"]
    assert lines["image_heavy"] == {
        "time_ratio": 0.4, "memory_ratio": 0.5, "floor": 0.3, "generation_ratio": 0.4, "off_ratio": 0.4
    }  # fmt: skip
    assert lines["image_heavy@2"]["time_ratio"] == 0.5


def heights(page: ElementTree.Element, name: str) -> list[float]:
    """Of the bars of a colour, from left to right."""
    bars = [node for node in page.iter() if node.get("class") == name and node.get("height")]
    return [float(bar.attrib["height"]) for bar in bars[1:]]  # the first is the legend's


def test_the_chart_draws_every_row_to_scale() -> None:
    results = [result("image_heavy", 4, 0.8), result("image_heavy", 8, 0.4), result("text<heavy", 8, 1.2)]
    svg = chart.draw({"machine": "CPU & 2 threads", "results": results})
    page = ElementTree.fromstring(svg)
    found = heights(page, "time")
    assert found == pytest.approx([2 * found[1], found[1], 3 * found[1]])
    assert {"image-heavy", "text<heavy", "G = 4"} <= {node.text for node in page.iter()}


def test_the_chart_of_micro_batches_has_both_trainers_beside_grpo_at_the_largest() -> None:
    last = result("image_heavy", 8, 0.6, micro_batch=1, largest=8)
    last["ratios"]["rival_ratio"] = {"low": 1.0, "median": 1.2, "high": 1.5}
    last["rival_memory_ratio"] = 0.25
    svg = chart.draw({"machine": "CPU", "results": [result("image_heavy", 8, 0.3, largest=8), last]})
    page = ElementTree.fromstring(svg)
    time, memory = heights(page, "time"), heights(page, "memory")
    assert time == pytest.approx([0.3 * time[2], 0.6 * time[2], time[2], 1.2 * time[2]])
    assert memory == pytest.approx([0.5 * time[2], 0.5 * time[2], time[2], 0.25 * time[2]])
    words = [node.text for node in page.iter() if node.tag.endswith("text")]
    assert [word for word in words if word in ("1", "8", "VGPO", "GRPO")][1:] == ["8", "1", "8", "1", "VGPO", "GRPO"]
    assert "GRPO at 8 rows = 1 (CPU)" in svg
    assert float(page.attrib["width"]) > 44 + 8.2 * len(
        "A step without generation, by rows of a micro-batch; GRPO at 8 rows = 1 (CPU)"
    )
