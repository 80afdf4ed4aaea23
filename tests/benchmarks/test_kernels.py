"""The benchmarks of kernels end in their figures and in what they were measured on."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmarks import attention, record, reweighting


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


def test_attention(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    written = run(attention, file, monkeypatch, "--rounds", "3")
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(line) == {*attention.CASES["cpu"], "environment"}
    for case, seconds in written["seconds"].items():
        assert {len(values) for values in seconds.values()} == {3}
        assert line[case] == attention.ratios_of(seconds)
        assert line[case]["separate"] == 1


@pytest.mark.parametrize("shape", [(24, 5, 2), (9, 12, 3)])
def test_ways_to_attend_agree(shape: attention.Shape) -> None:
    """All but `separate`, whose rows have a prompt each, and which agrees where a response is alone."""
    prompt, response, group = shape
    ways = attention.ways(prompt, response, group, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    length = prompt + group * response
    heads = [torch.randn(1, attention.HEADS, length, attention.HEAD_SIZE, generator=generator) for _ in range(3)]
    expected = ways["dense"][2](*heads)
    for name in ("expanded", "blocks"):
        torch.testing.assert_close(ways[name][2](*heads), expected, rtol=0, atol=1e-5, msg=name)
    first = prompt + response
    alone = ways["separate"][2](*(tensor[:, :, :first] for tensor in heads))
    torch.testing.assert_close(alone, expected[:, :, :first], rtol=0, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_cuda_that_is_not_there_is_named() -> None:
    with pytest.raises(SystemExit, match="PyTorch finds no CUDA device"):
        record.environment(seed=0, device="cuda")
