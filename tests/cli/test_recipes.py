"""`vgpo recipes` and `vgpo train --help-fields`: what comes with the package, and what a recipe may say."""

import tomllib
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from vgpo.cli import app
from vgpo.commands import train
from vgpo.recipe.files import packaged_folder, recipe_folder
from vgpo.recipe.packaged import packaged_files

ROOT = Path(__file__).parents[2]


def invoke(*words: object) -> Result:
    done = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200"})
    assert "Traceback" not in done.output
    return done


def test_every_packaged_file_is_listed_with_what_it_is() -> None:
    shown = invoke("recipes").stdout
    assert shown == invoke("recipes", "list").stdout
    rows = [line.rstrip().split(maxsplit=2) for line in shown.splitlines()[1:] if line[0] != " "]
    lines = {name: found for name, *found in rows}
    assert lines.keys() == {
        path.stem for path in (*recipe_folder().rglob("*.yaml"), *(ROOT / "studies").glob("*.yaml"))
    }
    assert lines["one_gpu"] == ["accelerate", "One GPU, bfloat16 mixed precision"]
    assert lines["quickstart_dapo"][0] == "recipe"
    assert lines["adaptive_rivals"] == [  # its first sentence, not its second
        "study", "VGPO's rivals from the starting checkpoints of adaptive_forgetting.yaml and adaptive_mixed.yaml"
    ]  # fmt: skip
    assert lines["embedded"][0] == "study"
    assert len({one.name for one in packaged_files()}) == len(list(packaged_files()))


def test_the_wheel_has_every_study() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    included = {name for name in build["force-include"] if name.startswith("studies/")}
    assert included == {f"studies/{path.name}" for path in packaged_folder("studies").glob("*.yaml")}


def test_a_file_is_shown_and_copied_but_never_over_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original = (recipe_folder() / "quickstart_vgpo.yaml").read_text()
    assert invoke("recipes", "show", "quickstart_vgpo").stdout == original
    assert invoke("recipes", "copy", "quickstart_vgpo").stdout == "copied: quickstart_vgpo.yaml\n"
    assert invoke("recipes", "copy", "quickstart_vgpo.yaml", "new/mine.yaml").stdout == "copied: new/mine.yaml\n"
    assert (tmp_path / "quickstart_vgpo.yaml").read_text() == (tmp_path / "new" / "mine.yaml").read_text() == original
    (tmp_path / "folder").mkdir()
    assert invoke("recipes", "copy", "one_gpu", "folder").stdout == "copied: folder/one_gpu.yaml\n"
    assert (tmp_path / "folder" / "one_gpu.yaml").is_file()
    for words, message in {
        ("one_gpu", "folder"): "folder/one_gpu.yaml exists already",
        ("quickstart_vgpo",): "quickstart_vgpo.yaml exists already; name another file",
        ("quickstart_vgpq",): "the package has no file 'quickstart_vgpq' (did you mean 'quickstart_vgpo'?)",
        ("one_gpu", "new/mine.yaml/x"): "cannot be written: ",
    }.items():
        done = invoke("recipes", "copy", *words)
        assert done.exit_code == 2
        assert message in done.stderr
    assert (tmp_path / "quickstart_vgpo.yaml").read_text() == original
    assert "the package has no file 'on_gpu' (did you mean 'one_gpu'?)" in invoke("recipes", "show", "on_gpu").stderr


@pytest.mark.parametrize("word", ["alarm-lines", "ALARM_LINES", "logged lines in a row"])
def test_fields_are_found_by_name_and_description(word: str) -> None:
    lines = invoke("train", "--help-fields", word).stdout.splitlines()
    assert lines[0].startswith("alarm_lines: int, default ")
    assert lines[1].startswith("Logged lines in a row")


def test_fields_that_cannot_be_set_are_not_listed_and_a_wrong_word_names_the_nearest() -> None:
    lines = invoke("train", "--help-fields").stdout.splitlines()
    names = [line.partition(":")[0] for line in lines if line.endswith(("(vgpo)", "(trl)", "(transformers)"))]
    assert names[0] == "train_data"
    assert {"strength", "learning_rate", "lora_r"} <= set(names)
    assert "output_dir" not in names
    assert "train_data: str, required (vgpo)" in lines
    assert "logging_steps: float, default 1 (vgpo)" in lines
    done = invoke("train", "--help_fields", "strenght")
    assert done.exit_code == 1
    assert "(did you mean 'strength'?)" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no recipe: run `vgpo train RECIPE`"),
        (["--seed", "1", "quickstart_vgpo"], "no recipe: run `vgpo train RECIPE`, with the recipe first"),
        (["quickstart_vgpo", "--config", "mine.yaml"], "found the recipe 'quickstart_vgpo' and --config mine.yaml"),
        (["quickstart_vgpo", "--learning-rte", "1"], "command line: unknown field 'learning_rte'"),
        (["--config", "quickstart_vgpo", "--learning_rte", "1"], "command line: unknown field 'learning_rte'"),
        (["quickstart_vgpo", "7", "--seed", "1"], "command line: unexpected '7'"),
    ],
)
def test_a_recipe_is_the_first_word_or_an_option(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgpo.recipe.train.build_trainer", None)  # nothing is trained, even if a mistake is missed
    monkeypatch.chdir(tmp_path)
    done = invoke("train", *words)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize("words", [["quickstart_vgpo"], ["--config", "quickstart_vgpo"]])
def test_a_recipe_and_its_overrides_reach_the_host(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(train, "errors", lambda *arguments: given.append(arguments) or ())
    monkeypatch.setattr(train, "run", lambda *arguments, command: given.append(arguments))
    done = invoke("train", *words, "--seed", "1", "--use-cpu=true")
    assert done.exit_code == 0, done.output
    assert given == [("quickstart_vgpo", ["--seed", "1", "--use-cpu=true"])] * 2


def test_hyphens_and_underscores_are_the_same_in_options(tmp_path: Path) -> None:
    for option in ("--max_new_tokens", "--max-new-tokens"):
        done = invoke("eval", tmp_path / "none", option, "8", "--data", "toy:test")
        assert done.exit_code == 2
        assert "there is no folder" in done.stderr
    assert "No such option" in invoke("eval", "toy", "--max.new.tokens", "8").stderr
