"""The step benchmark measures what it says: equal work, exact prompts, named contenders, a picture of it all."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import chart, step

from vgpo.toy.model import build_processor

CASE = step.Case(prompt=24, side=3, response=5)
TINY = step.Bench(
    text={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "num_key_value_heads": 1, "vocab_size": 512},
    vision={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "fullatt_block_indexes": [0]},
    dtype=torch.float32,
    cases={"tiny": CASE},
)  # fmt: skip


def work(num_steps: int, group: int = 2) -> step.Workload:
    return step.random_workload(TINY, CASE, group, num_steps, seed=3)


def grad_norms(contender: step.Contender) -> list[float]:
    return [entry["grad_norm"] for entry in contender.trainer.state.log_history if "grad_norm" in entry]


@pytest.mark.train
def test_every_contender_does_the_work_of_grpo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a shaping all have the gradients of TRL's trainer: same rollouts, same prompts, same loss."""
    for name in ("VGPO", "VGPO off"):
        trainer_class, config_class, settings = step.CONTENDERS[name]
        monkeypatch.setitem(step.CONTENDERS, name, (trainer_class, config_class, {**settings, "shaping": "none"}))
    contenders = step.compare(work(num_steps=4, group=4), steps=2, seed=3, device="cpu")
    expected = grad_norms(contenders["GRPO"])
    assert len(expected) == 4
    assert min(expected) > 0
    for contender in contenders.values():
        assert grad_norms(contender) == pytest.approx(expected, rel=1e-4)
        assert contender.peak_bytes > 0


@pytest.mark.train
def test_a_row_holds_ratios_of_counted_steps() -> None:
    row = step.measure(work(num_steps=4), steps=2, seed=3, device="cpu")
    assert (row["group"], row["prompt"], row["visual"], row["response"], row["rollouts"]) == (2, 24, 9, 5, 2)
    assert row["floor"] == pytest.approx((24 + 2 * 5) / (2 * (24 + 5)))
    for ratio in row["ratios"].values():
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    for phases in row["seconds"].values():
        assert phases["step"] > phases["update"] > phases["generation"] / 100 > 0


@pytest.mark.parametrize("device", step.BENCHES)
def test_prompts_have_the_tokens_of_their_case(device: str) -> None:
    for case in step.BENCHES[device].cases.values():
        assert 2 * case.side**2 > case.prompt  # the picture is the greater part
        processor = build_processor()
        processor.image_processor.size["longest_edge"] = (case.side * step.CELL) ** 2
        lengths = step.mean_lengths(step.random_prompts(case, 1, seed=0), processor)
        assert lengths == (case.prompt, case.side**2)


@pytest.mark.train
def test_a_failing_trainer_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        raise ArithmeticError("no reward")

    monkeypatch.setattr(step, "checksum", broken)
    with pytest.raises(ArithmeticError, match="no reward"):
        step.compare(work(num_steps=3), steps=1, seed=3, device="cpu")


def result(case: str, group: int, time: float) -> dict[str, Any]:
    ratio = {"low": time - 0.05, "median": time, "high": time + 0.05}
    return {
        "case": case, "group": group, "prompt": 300, "visual": 256, "response": 75, "rollouts": group, "floor": 0.3,
        "memory_ratio": 0.5, "ratios": dict.fromkeys(step.RATIOS, ratio),
    }  # fmt: skip


def test_the_headline_is_that_of_groups_of_eight() -> None:
    results = [
        result("image_heavy", 4, 0.7),
        result("image_heavy", 8, 0.4),
        result("image_heavy", 16, 0.3),
        result("embedded", 8, 0.9),
    ]
    lines = step.headline(results)
    assert list(lines) == ["image_heavy", "embedded"]
    assert lines["image_heavy"] == {
        "time_ratio": 0.4, "memory_ratio": 0.5, "floor": 0.3, "generation_ratio": 0.4, "off_ratio": 0.4
    }  # fmt: skip


def test_the_chart_draws_every_row_to_scale(tmp_path: Path) -> None:
    results = [result("image_heavy", 4, 0.8), result("image_heavy", 8, 0.4), result("text<heavy", 8, 1.2)]
    svg = chart.draw({"machine": "CPU & 2 threads", "results": results})
    page = ElementTree.fromstring(svg)
    bars = [node for node in page.iter() if node.get("class") == "time" and node.get("x")]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights == pytest.approx([2 * heights[1], heights[1], 3 * heights[1]])
    assert {"image-heavy", "text<heavy"} <= {node.text for node in page.iter()}
