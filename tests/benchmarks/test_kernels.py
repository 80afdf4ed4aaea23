"""The benchmarks of kernels end in their figures and in what they were measured on."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmarks import record, reweighting


def run(benchmark: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, object]:
    """What a tiny call writes."""
    name = f"{benchmark.__name__}.py"
    monkeypatch.setattr("sys.argv", [name, "--device", "cpu", "--tiny", "--seed", "5", "--json", str(file), *words])
    benchmark.main()
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "results.json"


def test_reweighting(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    written = run(reweighting, file, monkeypatch, "--repeats", "1", "--threads", str(torch.get_num_threads()))
    *_, vs_loops, vs_read, last = capsys.readouterr().out.splitlines()
    line = json.loads(last)
    seconds = written["seconds"]
    assert line["vs_loops"] == pytest.approx(seconds["loops"] / seconds["vectorised"], abs=0.05)
    assert line["vs_read"] == pytest.approx(seconds["vectorised"] / seconds["read"], abs=0.005)
    assert vs_loops.split() == ["vs_loops", str(line["vs_loops"])]
    assert vs_read.split() == ["vs_read", str(line["vs_read"])]
    assert line["environment"]["seed"] == written["environment"]["seed"] == 5
    assert written["difference"] < 1e-5


def test_goals_of_cuda_stand_beside_the_ratios() -> None:
    table = reweighting.result_table({"loops": 1.0}, {"vs_loops": 320.0}, reweighting.GOALS["cuda"])
    assert [list(column.cells)[-1] for column in table.columns] == ["vs_loops", "", "320.0", "at least 300"]


def test_factors_that_differ_are_not_timed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reweighting, "largest_difference", lambda found, expected: 0.5)
    with pytest.raises(SystemExit, match=r"differ from the loops' by 5\.0e-01: nothing was timed"):
        run(reweighting, file, monkeypatch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_cuda_that_is_not_there_is_named() -> None:
    with pytest.raises(SystemExit, match="PyTorch finds no CUDA device"):
        record.environment(seed=0, device="cuda")
