"""`vgpo toy`: write errors are reported without a traceback."""

from pathlib import Path

from typer.testing import CliRunner

from vgpo.cli import app


def test_a_folder_that_cannot_be_made_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = CliRunner().invoke(app, ["toy", "data", str(tmp_path / "file" / "x")])
    assert done.exit_code == 2
    assert "error: " in done.stderr
    assert str(tmp_path / "file") in done.stderr
