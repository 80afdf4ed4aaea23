"""The host that a recipe names, and what happens where it is not there."""

import sys
from pathlib import Path

import pytest

from vgpo.cli import main
from vgpo.commands import doctor
from vgpo.hosts import errors_of_host
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import host_of
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.train import ERRORS, train_recipe


@pytest.fixture
def for_verl(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: quickstart_vgpo\nhost: verl\n")
    return path


def test_the_host_is_trl_unless_a_recipe_or_the_command_line_names_another(for_verl: Path) -> None:
    assert host_of("quickstart_vgpo", []) == "trl"
    assert host_of(for_verl, []) == "verl"
    assert host_of(for_verl, ["--seed", "1", "--host", "trl"]) == "trl"
    assert host_of("quickstart_vgpo", ["--host=verl"]) == "verl"


def test_errors_are_those_of_the_host() -> None:
    assert errors_of_host("quickstart_vgpo", []) == ERRORS


def test_a_host_that_is_not_installed_names_the_package(for_verl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("vgpo.verl.main")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        RecipeError, match=r"host: verl needs ray, which is not installed here: pip install 'vgpo\[verl\]'"
    ):
        errors_of_host(str(for_verl), [])


def test_the_command_line_says_so_in_one_line(
    for_verl: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sys, "argv", ["vgpo", "train", "--config", str(for_verl)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "host: verl needs ray" in " ".join(capsys.readouterr().err.split())


def test_trl_does_not_train_a_recipe_for_verl(for_verl: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"host is 'verl', but this command is TRL's: start the recipe with `vgpo train`"
    ):
        train_recipe(for_verl, [], command=[])


def test_doctor_names_the_check_of_the_other_host(for_verl: Path) -> None:
    with pytest.raises(RecipeError, match=r"python -m vgpo\.verl .*mine\.yaml --check"):
        doctor.run(str(for_verl), [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "ray"], "host is 'ray', expected one of"),
        (["--verl", '{"trainer.nnodes": 2}'], "verl has no effect without host: verl"),
    ],
)
def test_a_host_that_does_not_exist_and_settings_without_one_are_errors(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("quickstart_vgpo", words)
