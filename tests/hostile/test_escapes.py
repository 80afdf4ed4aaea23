"""The answers that once escaped: files stay, the trainer lives, and later verdicts are right."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.hostile.escapes import DELETE, KILL, POISON
from vgpo.rewards import Grader

SETTINGS = [{}, {"fallback_verifier": "math-verify"}]


@pytest.fixture
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "victim"
    path.write_text("unharmed")
    return path


@pytest.mark.parametrize("settings", SETTINGS, ids=["mathruler", "math-verify"])
def test_an_answer_deletes_no_file(victim: Path, settings: dict) -> None:
    with Grader(**settings) as grader:
        assert grader.grade([rf"\boxed{{{DELETE}}}"], [r"\frac{1}{3}"]) == [False]
        assert grader.statistics.refused == 1
    assert victim.read_text() == "unharmed"


def test_a_reference_answer_deletes_no_file(victim: Path) -> None:
    with Grader() as grader:
        assert grader.grade([r"\boxed{\sqrt{2}}"], [DELETE]) == [False]
        assert grader.statistics.refused == 1
    assert victim.read_text() == "unharmed"


@pytest.mark.process
def test_an_answer_kills_no_trainer() -> None:
    script = """
        import sys
        from vgpo.rewards import Grader
        with Grader() as grader:
            print(grader.grade(sys.argv[1:3], sys.argv[3:]))
    """
    arguments = [rf"\boxed{{{KILL}}}", r"\boxed{\sqrt{12}}", r"\sqrt{3}", r"2\sqrt{3}"]
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout) == (0, "[False, True]\n")


def test_an_answer_poisons_no_later_verdict() -> None:
    with Grader(num_workers=1) as grader:
        answers = [rf"\boxed{{{answer}}}" for answer in (POISON, r"\sqrt{7}", "x+2", r"99\sqrt{2}")]
        assert grader.grade(answers, [r"\sqrt{3}", r"\sqrt{3}", "x+1", "3.5"]) == [False] * 4
        assert grader.grade(answers[1:], [r"\sqrt{3}", "x+1", "3.5"]) == [False] * 3
