"""`vgpo inspect`, from checkpoints to a file and a page."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from tests.report.run_records import handed_over, rollout
from vgpo.cli import app
from vgpo.commands import inspect as command
from vgpo.equations import RolloutScore, VGPOSettings
from vgpo.inspection import Inspection
from vgpo.pages.files import paired_paths
from vgpo.recipe.errors import RecipeError
from vgpo.run import RunFolder
from vgpo.toy import checkpoint_path

CONFIG = {
    "template": "think_boxed",
    "max_completion_length": 5,
    "chat_template_kwargs": None,
    "strength": 0.9,
    "temperature": 0.5,
    "num_generations": 2,
}


def invoke(*words: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["inspect", *map(str, words)])
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    return done.output


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with a checkpoint whose weights are not those of the start, and one stored group."""
    run = RunFolder.create(tmp_path / "runs" / "study", CONFIG, seed=0, command=["vgpo"])
    model = AutoModelForImageTextToText.from_pretrained(checkpoint_path())
    processor = AutoProcessor.from_pretrained(checkpoint_path())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    checkpoint = run.checkpoints_path / "checkpoint-4"
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    ids = [processor.tokenizer(text)["input_ids"] for text in ("row 1: 7", "row 1: 8<|im_end|>")]
    for advantage, tokens in zip((-1.0, 1.0), ids, strict=True):
        told = [processor.tokenizer.decode([token]) for token in tokens]
        made = rollout(4, 0, token_ids=tokens, tokens=told, completion="".join(told), advantage=advantage)
        run.write_rollouts(*handed_over([made]))
    return run.path


def test_questions_of_a_data_set(tmp_path: Path, toy_files: tuple[Path, Path]) -> None:
    out = tmp_path / "out"
    said = invoke("toy", "--data", toy_files[1], "--rows", "1,4-5", "--max-new-tokens", 8, "--out", out, "--without")
    assert str(out / "inspection.html") in said
    assert "--without is now called --ablate-image" in said
    found = Inspection.read(out / "inspection.json")
    assert (out / "inspection.html").read_text("utf-8") == found.to_html()
    assert [question["row"] for question in found.questions] == [1, 4, 5]
    assert found.data["models"] == [{"name": "toy", "path": "toy", "family": "qwen2_5_vl"}]
    assert found.data["responses"] == {"from": "answers", "temperature": 0.0, "seed": 0, "max_new_tokens": 8}
    assert found.data["settings"]["strength"] == 0.3
    assert found.questions[0]["rollouts"][0]["without"]["blank"]["correct"] in (True, False)


@pytest.mark.parametrize(("shaping", "score"), [("adaptive", "mean"), ("vgpo", "sum")])
def test_responses_are_weighed_as_in_training(tmp_path: Path, shaping: str, score: RolloutScore) -> None:
    # A recipe with an adaptive shaping has the default of rollout_score, which the shaping does not use.
    config = {**CONFIG, "shaping": shaping, "rollout_score": "sum", "shaping_options": None}
    checkpoint = RunFolder.create(tmp_path / "run", config, seed=0, command=["vgpo"]).checkpoints_path / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    assert command.options_of_run(checkpoint).settings == VGPOSettings(strength=0.9, rollout_score=score)


def test_a_checkpoint_of_a_run_beside_its_start(
    tmp_path: Path, toy_files: tuple[Path, Path], run_folder: Path
) -> None:
    checkpoint = run_folder / "checkpoints" / "checkpoint-4"
    words = ["--compare", "toy", "--rows", "0-2", "--samples", 2, "--out", tmp_path / "page.html"]
    invoke(checkpoint, "--data", toy_files[1], *words)
    found = Inspection.read(tmp_path / "page.json")
    assert [model["name"] for model in found.data["models"]] == ["study/checkpoint-4", "toy"]
    assert found.data["settings"]["strength"] == 0.9
    assert found.data["responses"] == {"from": "answers", "temperature": 0.5, "seed": 0, "max_new_tokens": 5}
    for question in found.questions:
        assert [(one["model"], one["sample"]) for one in question["rollouts"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert not list(tmp_path.glob(".*partial"))


def test_responses_that_a_run_stored(tmp_path: Path, run_folder: Path) -> None:
    checkpoint = run_folder / "checkpoints" / "checkpoint-4"
    invoke(checkpoint, "--out", tmp_path / "a.json")
    (question,) = Inspection.read(tmp_path / "a.json").questions
    assert ["".join(one["tokens"]) for one in question["rollouts"]] == ["row 1: 7", "row 1: 8<|im_end|>"]
    assert question["row"] == 7
    assert sum(question["rollouts"][0]["advantage"]) < 0 < sum(question["rollouts"][1]["advantage"])
    assert Inspection.read(tmp_path / "a.json").data["responses"] == {"from": "rollouts", "steps": [4, 4]}
    page = (tmp_path / "a.html").read_text("utf-8")
    assert "rollouts that the run drew and stored at step 4, read by this checkpoint" in page
    assert "sampled at temperature" not in page


@pytest.mark.parametrize(
    "words",
    [
        ["--compare", "toy"],
        ["--ablate-image"],
        ["--samples", 1],
        ["--seed", 0],
        ["--max-new-tokens", 8],
        ["--format", "table"],
    ],
    ids=lambda words: words[0],
)
def test_stored_responses_are_not_answered_anew(tmp_path: Path, run_folder: Path, words: list[object]) -> None:
    checkpoint = run_folder / "checkpoints" / "checkpoint-4"
    said = " ".join(invoke(checkpoint, *words, "--out", tmp_path / "a.json", status=2).split())
    assert f"{words[0]}: without --data, `vgpo inspect` reads the responses that the checkpoint's run stored" in said
    assert f"--data FILE, or leave {words[0]} out" in said
    assert not (tmp_path / "a.json").exists()


def test_what_cannot_be_inspected_is_said(tmp_path: Path, toy_files: tuple[Path, Path]) -> None:
    assert "'toy' is not in a run folder" in invoke("toy", status=2)
    output = " ".join(invoke("toy", "--data", toy_files[1], "--rows", "3,12", status=2).split())
    assert f"there is no row 12: {toy_files[1]} has 12 rows, counted from 0" in output
    assert f"there is no folder '{tmp_path}/none'" in invoke(tmp_path / "none", "--data", toy_files[1], status=2)


@pytest.mark.parametrize(
    ("words", "rows"), [("0-3", [0, 1, 2, 3]), ("7", [7]), ("5, 0-2,1", [5, 0, 1, 2]), ("2-2", [2])]
)
def test_rows(words: str, rows: list[int]) -> None:
    assert command.parse_rows(words) == rows


@pytest.mark.parametrize("words", ["", "a", "3-1", "-1", "1,,2", "1-", "1.5"])
def test_rows_that_are_none(words: str) -> None:
    with pytest.raises(RecipeError, match=r"expected numbers from 0 and ranges, as in 0-49 or 0,3,7"):
        command.parse_rows(words)


def test_two_checkpoints_never_have_one_name(tmp_path: Path) -> None:
    finals = [tmp_path / method / "seed-0" / "checkpoints" / "final" for method in ("dapo", "vgpo")]
    for final in finals:
        final.mkdir(parents=True)
        (final.parents[1] / "config.yaml").write_text("seed: 0\n")
    assert command.different_names(str(finals[0]), str(finals[1])) == ("dapo", "vgpo")
    assert command.different_names(str(finals[0]), "toy") == ("seed-0/final", "toy")
    with pytest.raises(RecipeError, match=r"is the checkpoint itself"):
        command.different_names(str(finals[0]), str(finals[0]))


def test_names_of_the_two_files() -> None:
    assert paired_paths(Path("a/b.c.html"), command.NAME) == (Path("a/b.c.json"), Path("a/b.c.html"))
    assert paired_paths(Path("v1.2"), command.NAME) == (Path("v1.2/inspection.json"), Path("v1.2/inspection.html"))
