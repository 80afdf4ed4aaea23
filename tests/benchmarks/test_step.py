"""The step benchmark measures what it says: equal work, exact prompts, named contenders, a picture of it all."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import chart, models, step

from vgpo.toy.model import build_tokenizer

TINY = models.tiny(models.BENCHES["cpu"])


def work(num_steps: int, group: int = 2, bench: models.Bench = TINY) -> step.Workload:
    case = next(iter(bench.cases.values()))
    return step.random_workload(bench, case, group, num_steps, seed=3, device="cpu")


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


ALL = models.BENCHES | models.MODELS


@pytest.mark.parametrize("name", ALL)
def test_prompts_have_the_tokens_of_their_case(name: str) -> None:
    for case in ALL[name].cases.values():
        assert 2 * case.side**2 > case.prompt  # the picture is the greater part
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
    """Shrunk, with all else: bf16, gradient checkpointing, responses that are drawn at random."""
    row = step.measure(work(num_steps=4, bench=models.tiny(models.MODELS[name])), steps=2, seed=3, device="cpu")
    assert set(row["ratios"]) == {"time_ratio", "step_ratio", "off_ratio"}
    assert row["memory_ratio"] > 0


@pytest.mark.train
def test_a_call_ends_in_figures_and_where_they_come_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "step.json"
    words = ["--device", "cpu", "--model", "qwen2_5_vl_3b", "--tiny", "--steps", "1", "--seed", "5"]
    monkeypatch.setattr("sys.argv", ["step.py", *words, "--json", str(file)])
    step.main()
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    assert set(line["paper"]) == {"time_ratio", "memory_ratio", "floor", "off_ratio"}
    assert line["environment"]["seed"] == 5
    assert re.search(r"paper, G 8: memory_ratio 0\.\d{3}, goal at most 0.5\n", out)
    written = json.loads(file.read_text(encoding="utf-8"))
    assert [(row["case"], row["group"]) for row in written["results"]] == [("paper", 8)]
    assert torch.__version__.startswith(written["environment"]["versions"]["torch"])


def test_what_is_left_out_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(*words: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["step.py", *words])
        return [f"{case} {group}" for case, group in step.parse_plan()[0].runs]

    assert runs("--device", "cuda") == ["image_heavy 4", "image_heavy 8", "image_heavy 16"]
    assert runs("--device", "cpu", "--groups", "4") == ["image_heavy 4", "balanced 4", "text_heavy 4", "embedded 8"]
    assert runs("--device", "cuda", "--cases", "embedded", "balanced", "--groups", "2") == ["balanced 2", "embedded 8"]
    assert runs("--device", "cuda", "--model", "qwen2_5_vl_7b") == ["paper 8"]
    with pytest.raises(SystemExit):
        runs("--model", "qwen2_5_vl_7b", "--cases", "embedded")


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
