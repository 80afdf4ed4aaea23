"""The benchmark of generation times both trainers by the rows of a call."""

import json
from pathlib import Path

import pytest
from benchmarks import generation


def test_a_call_prints_the_time_of_a_token_by_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "generation.json"
    words = ["--device", "cpu", "--tiny", "--rounds", "2", "--cases", "balanced", "--rows", "8", "16", "--json"]
    monkeypatch.setattr("sys.argv", ["generation.py", *words, str(file)])
    generation.main()
    out = capsys.readouterr().out
    *lines, last = out.splitlines()
    assert max(map(len, lines)) <= 119
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert [row["rows"] for row in results] == [8, 16]
    # VGPO reads the prompt of a group once.
    assert [row["images"] for row in results] == [{"GRPO": 8, "VGPO": 1}, {"GRPO": 16, "VGPO": 2}]
    for row in results:
        milliseconds = row["milliseconds"]["VGPO"]["median"]
        assert json.loads(last)["balanced"][str(row["rows"])] == [
            round(milliseconds, 4),
            round(row["ratio"]["median"], 4),
        ]
        assert milliseconds > 0
    assert [line.split()[:4] for line in lines if line.startswith("balanced  ")] == [
        ["balanced", "24", "5", "8"], ["balanced", "24", "5", "16"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rows 8 12", "--rows 12: expected multiples of the 8 rollouts of a group"),
        ("--cases embedded", "--cases embedded: expected some of image_heavy, balanced, text_heavy"),
    ],
)
def test_options_that_do_not_fit_are_named(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["generation.py", "--device", "cpu", *words.split()])
    with pytest.raises(SystemExit):
        generation.parse_arguments()
    assert message in capsys.readouterr().err
