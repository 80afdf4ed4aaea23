"""`vgpo data check` on sets in the form of Geometry3K and MathVista, on the toy recipe, and on what is wrong."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import PIL.Image
import pytest
from click.testing import Result
from trl import ModelConfig
from typer.testing import CliRunner

from vgpo.cli import app
from vgpo.data import prompt_lengths
from vgpo.recipe import loading

HOSTILE = "<script>alert(1)</script> \x1b[2Jred\u202eder {{ 7 * 7 }} [bold]"


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`vgpo data check` of the toy recipe with other words; no weights may be loaded."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(loading, "load_model", lambda *args, **kwargs: pytest.fail("weights were loaded"))

    def invoke(*words: object, recipe: str = "quickstart_vgpo") -> Result:
        return CliRunner().invoke(app, ["data", "check", recipe, *map(str, words)], catch_exceptions=False)

    return invoke


def lines(result: Result) -> list[str]:
    return [" ".join(line.strip(" │").split()) for line in result.stdout.splitlines()]


def test_geometry_and_vista_sets(check: Callable[..., Result], geometry: Path, vista: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "check.html"
    done = check("--train_data", geometry, "--eval_data", vista, "--template", "think_boxed", "--html", page)
    assert done.exit_code == 0
    shown = lines(done)
    assert "12 rows" in shown
    assert "1 image 12 number 8" in shown
    assert "expression 4" in shown
    # MathVista's reference answers become letters, and its kinds are counted by its own columns.
    assert "10 rows" in shown
    words = " ".join(shown)
    for kinds in ("choice letter 5", "free_form 5", "multi_choice 5", "math 8", "general 2"):
        assert kinds in words
    assert "A. triangle" in shown
    assert "Give the number with 1 decimal place." in shown
    assert done.stdout.count("image 1: ") == 6
    assert done.stdout.count("<|image_pad|>") == 6
    assert "\\boxed{" in done.stdout
    assert f"page: {page}" in done.stdout.replace("\n", "")
    text = page.read_text()
    assert text.count("<img ") == 6
    assert text.count("data:image/png;base64,") == 6
    assert "://" not in text
    assert "<script" not in text


def test_embedded_recipe(check: Callable[..., Result]) -> None:
    done = check("--eval_limit", 20, "--train_data", "toy:test", "--max_prompt_length", 27)
    assert done.exit_code == 0
    shown = lines(done)
    assert "500 rows" in shown
    assert "20 rows" in shown
    assert any(line.startswith("dropped 165 of 500 prompts, longer than max_prompt_length=27") for line in shown)


def test_recipe_for_gpus_is_checked_without_one(check: Callable[..., Result], geometry: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: toy\ntrain_data: {geometry}\nbf16: true\nfsdp: full_shard\n")
    done = check(recipe=str(recipe))
    assert done.exit_code == 0
    assert "12 rows" in lines(done)


def test_faults_of_both_sets_are_named_and_the_exit_is_not_zero(
    check: Callable[..., Result], geometry: Path, vista: Path, tmp_path: Path
) -> None:
    sound = datasets.Dataset.from_parquet(str(geometry))
    problems = [*sound["problem"][:11], "<image><image>Find x."]
    sound.remove_columns("problem").add_column("problem", problems).to_parquet(geometry)
    rows = datasets.Dataset.from_parquet(str(vista))
    rows.remove_columns("answer").add_column("answer", ["circle"] * 10).to_parquet(vista)
    page = tmp_path / "page.html"
    done = check("--train_data", geometry, "--eval_data", vista, "--html", page)
    assert done.exit_code == 2
    assert "train_data: the dataset of 12 rows cannot be used:" in done.stderr
    assert "row 11, field 'problem': 2 <image> placeholders but 1 in field 'images'" in done.stderr
    assert "eval_data: the dataset of 10 rows cannot be read:" in done.stderr
    assert "row 1, field 'answer': 'circle' is not one of the choices ['triangle', 'square']" in done.stderr
    assert "1 image 12 number 8" in lines(done)
    assert not page.exists()


def test_hostile_text_is_shown_and_not_obeyed(check: Callable[..., Result], geometry: Path, tmp_path: Path) -> None:
    sound = datasets.Dataset.from_parquet(str(geometry))
    hostile = {"problem": ["<image>" + HOSTILE] * 12, "answer": [HOSTILE] * 12, "source": [HOSTILE, "b"] * 6}
    changed = sound.select_columns(["images"])
    for name, column in hostile.items():
        changed = changed.add_column(name, column)
    changed.to_parquet(geometry)
    page = tmp_path / "page.html"
    done = check("--train_data", geometry, "--eval_limit", 5, "--html", page)
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "[U+001B]" in done.stdout
    assert "{{ 7 * 7 }}" in done.stdout
    text = page.read_text()
    assert "<script" not in text
    assert "\x1b" not in text
    assert html.escape("<script>alert(1)</script>") in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train_format", "easyrl"], "train_format: unknown format 'easyrl' (did you mean 'easyr1'?)"),
        (["--max_prompt_length", 0], "max_prompt_length is 0, expected at least 1"),
        (["--max_prompt_length", 3], "have more than max_prompt_length=3 tokens; the shortest has"),
        (["--template", "gone.jinja"], "there is no prompt template 'gone.jinja'"),
        (["--train_format", "verl"], "the dataset has no column 'prompt'"),
        (["--train_data", "gone.parquet"], "there is no file or folder 'gone.parquet'"),
        (["--html", "."], "--html: cannot write . ([Errno 21] Is a directory: '.'); name a file"),
        (["--html", "/dev/null/page.html"], "--html: cannot write /dev/null/page.html ([Errno 17]"),
    ],
)
def test_wrong_words(check: Callable[..., Result], geometry: Path, words: list[object], message: str) -> None:
    done = check("--train_data", geometry, "--eval_limit", 1, *words)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


def test_template_that_asks_for_a_picture_and_a_set_of_one_row(
    check: Callable[..., Result], geometry: Path, tmp_path: Path
) -> None:
    datasets.Dataset.from_parquet(str(geometry)).select([0]).to_parquet(geometry)
    template = tmp_path / "mine.jinja"
    template.write_text("{{ problem }}<|image_pad|>")
    done = check("--train_data", geometry, "--eval_limit", 1, "--template", template)
    assert done.exit_code == 2
    assert "row 0, field 'problem': with the prompt template around it: contains '<|image_pad|>'" in done.stderr
    assert "1 row" in lines(done)


def test_documentation_shows_what_is_printed(
    check: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script, recipe, printed, fault = documented_blocks("python", "yaml", "", "")
    exec(compile(script, "docs/data.md", "exec"), {})
    Path("my.yaml").write_text(recipe)
    done = check(recipe="my.yaml")
    assert done.exit_code == 0
    assert [line.rstrip() for line in done.stdout.splitlines()] == printed.splitlines()

    Path("my_set/5.png").rename("my_set/five.png")
    done = check(recipe="my.yaml")
    assert done.exit_code == 2
    assert done.stderr.replace(str(tmp_path), "/home/me") == fault


def documented_blocks(*languages: str) -> list[str]:
    """The first code blocks of the page on data, which are in these languages."""
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)[: len(languages)]
    assert [language for language, _ in blocks] == list(languages)
    return [body for _, body in blocks]


def test_faulty_rows_are_left_out_counted_and_named_on_request(
    check: Callable[..., Result], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"photo": f"{n}.png", "query": f"<image>How many, {n}?", "label": n} for n in range(6)]
    rows[1]["label"] = None
    rows[2]["label"] = "<final>2</final>"
    for n in range(5):
        PIL.Image.new("RGB", (60, 60)).save(tmp_path / f"{n}.png")
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    columns = ["--columns", '{"images": "photo", "problem": "query", "answer": "label"}', "--eval_columns", "{}"]
    words = ["--train_data", source, *columns]
    assert check(*words).exit_code == 2
    done = check(*words, "--faulty_rows", "drop")
    assert done.exit_code == 0
    assert "5 rows" in lines(done)  # as they are counted before their images are opened
    assert [message.split(":\n")[0] for message in caplog.messages if "Dropped" in message] == [
        "Dropped 1 of 6 rows, which cannot be read",
        "Dropped 1 of 5 rows, which cannot be used",
    ]
    assert f"row 5, field 'images', image 0: there is no image file {tmp_path / '5.png'}" in caplog.text
    assert "╭─ row 4, " in done.stdout
    doubt = "no response will equal 1 reference answer; the first is that of row 2: it contains the tag '</final>'"
    assert doubt in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--columns", "answer=label"], "columns is 'answer=label', expected a mapping (on the command line in JSON)"),
        (
            ["--columns", '{"answer": 3}'],
            "columns is {'answer': 3}, expected names of columns, as in {answer: ",
        ),
        (["--faulty_rows", "skip"], "faulty_rows is 'skip', expected one of ['error', 'drop']"),
        (["--columns", '{"answer": "truth"}'], "columns: there is no column 'truth' to be read as 'answer'"),
    ],
)
def test_columns_and_faulty_rows_that_make_no_sense(
    check: Callable[..., Result], geometry: Path, words: list[str], message: str
) -> None:
    done = check("--train_data", geometry, *words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_prompts_that_are_too_long_are_left_out_of_training(
    geometry: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ModelConfig(model_name_or_path="toy")
    processor = loading.load_processor(model, trust_remote_code=False, min_pixels=None, max_pixels=None)
    rows = loading.read_dataset(str(geometry), toy_folder=tmp_path)
    lengths = prompt_lengths(rows, "plain", processor)
    limit = sorted(lengths)[5]
    prompts = loading.load_prompts(
        str(geometry), "plain", toy_folder=tmp_path, max_prompt_length=limit, processor=processor
    )
    assert [row["id"] for row in prompts] == [str(row) for row, length in enumerate(lengths) if length <= limit]
    assert f"{geometry}: dropped {12 - len(prompts)} of 12 prompts" in caplog.text
