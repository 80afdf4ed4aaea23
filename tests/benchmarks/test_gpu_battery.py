"""The battery runs its rows in order, whatever fails among them, and resumes where it stopped."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks import gpu_battery as battery
from benchmarks import step

FIGURES = '{"vs_loops": 12.5, "environment": {"seed": 0}}'


def python(row: int, name: str, code: str, has_json: bool = False) -> battery.Measurement:
    command = (sys.executable, "-c", code)
    return battery.Measurement(row, name, ("false",), command, has_json)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs tiny measurements by the command line; returns its exit status and the records by name."""

    def call(rows: list[battery.Measurement], *words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(battery, "measurements", lambda study: rows)
        monkeypatch.setattr("sys.argv", ["gpu_battery.py", "--out", str(tmp_path), "--tiny", *words])
        with pytest.raises(SystemExit) as end:
            battery.main()
        files = sorted(tmp_path.glob("*.json"))
        return end.value.code, {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}

    return call


@pytest.mark.process
def test_every_row_runs_whatever_became_of_those_before(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        python(1, "red", "print('1 failed'); raise SystemExit(3)"),
        python(2, "green", f"print('a table'); print('{FIGURES}')"),
        python(3, "written", "import sys; open(sys.argv[2], 'w').write('[7]')", has_json=True),
    ]
    code, records = call(rows)
    assert code == 1
    assert {name: record["status"] for name, record in records.items()} == {
        "1_red": "failed with status 3", "2_green": "passed", "3_written": "passed"
    }  # fmt: skip
    assert records["1_red"]["figures"] == ["1 failed"]
    assert records["2_green"]["figures"]["vs_loops"] == 12.5
    assert records["2_green"]["printed"] == f"a table\n{FIGURES}\n"
    assert records["3_written"]["results"] == [7]
    assert records["3_written"]["environment"]["versions"]["torch"]
    table = capsys.readouterr().out
    assert "failed with status 3" in table
    assert "vs_loops 12.5" in table


@pytest.mark.process
def test_a_row_that_takes_too_long_is_stopped_with_what_it_started(call: Any, tmp_path: Path) -> None:
    """What it had printed and written by then is kept."""
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code = (
        "import subprocess, sys, time; open(sys.argv[2], 'w').write('[1]'); print('begun', flush=True);"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    started = time.monotonic()
    _, records = call([python(1, "slow", code, has_json=True)], "--timeout", "2")
    record = records["1_slow"]
    assert (record["status"], record["figures"], record["results"]) == ("stopped after 2 s", ["begun"], [1])
    time.sleep(max(0, started + 5 - time.monotonic()))
    assert not mark.exists()


@pytest.mark.process
def test_what_has_passed_is_not_run_again(call: Any, tmp_path: Path) -> None:
    count = "import pathlib, sys; file = pathlib.Path({file!r}); file.write_text(file.read_text() + 'x')"
    files = [tmp_path / name for name in ("passes", "fails")]
    for file in files:
        file.write_text("")
    codes = [count.format(file=str(file)) for file in files]
    rows = [python(1, "passes", codes[0]), python(2, "fails", codes[1] + "; sys.exit(1)")]
    call(rows)
    call(rows, "--rows", "1")
    code, _ = call(rows)
    assert code == 1
    assert [file.read_text() for file in files] == ["x", "xx"]


def test_a_row_that_is_not_there_is_named(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, records = call([python(1, "a", "")], "--rows", "1,6")
    assert (code, records) == (2, {})
    assert "there is no row 6 here; row 6 needs --study COMMAND" in capsys.readouterr().err


def test_the_rows_are_those_of_the_battery(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = battery.measurements("vgpo compare studies/embedded.yaml --out 'a b'")
    assert [row.row for row in rows] == [1, 2, 3, 3, 3, 4, 4, 5, 6]
    assert rows[-1].command == ("vgpo", "compare", "studies/embedded.yaml", "--out", "a b")
    assert [row.row for row in battery.measurements(None)] == [1, 2, 3, 3, 3, 4, 4, 5]
    for row in rows:
        if row.has_json:
            assert (battery.ROOT / row.command[1]).is_file()
    runs = {}
    for row in rows:
        if row.command[1] == "benchmarks/step.py":
            monkeypatch.setattr("sys.argv", list(row.command[1:]))
            plan, _ = step.parse_plan()
            assert plan.device == "cuda"
            runs[row.name] = plan.runs
    assert runs == {
        "steps": (("image_heavy", 4), ("image_heavy", 8), ("image_heavy", 16)),
        "micro_batches": (("image_heavy", 8),),
        "flash_attention": (("image_heavy", 4), ("image_heavy", 8), ("image_heavy", 16)),
        "qwen2_5_vl_3b": (("paper", 8),),
        "qwen2_5_vl_7b": (("paper", 8),),
    }
