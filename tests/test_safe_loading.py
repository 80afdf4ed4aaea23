"""What is loaded never runs: no pickles, no evaluated text, and code of a checkpoint only where a recipe pins it."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig

import vgpo
from tests.trl.tiny import GROUP, coin, rows_with_pictures
from vgpo.data import DataError, load_dataset
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import load_model, load_processor
from vgpo.recipe.recipe import load_recipe
from vgpo.toy import checkpoint_path
from vgpo.trl import VGPOConfig, VGPOTrainer

PICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
EVALUATING = {"__import__", "compile", "eval", "exec"}
# Calls that are safe with this keyword only.
NEEDED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
UNSAFE_YAML = {"yaml.full_load", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"}
SOURCES = sorted(Path(vgpo.__file__).parent.rglob("*.py"))


def unsafe(source: str) -> list[str]:
    """What in a source would run, or unpickle, what it reads."""
    return [finding for node in ast.walk(ast.parse(source)) for finding in findings(node)]


def findings(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLERS]
    if isinstance(node, ast.ImportFrom):
        hidden = [f"{node.module}.{alias.name}" for alias in node.names]
        return (
            [node.module] if node.module in PICKLERS else [name for name in hidden if name in {*NEEDED, *UNSAFE_YAML}]
        )
    if not isinstance(node, ast.Call):
        return []
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    found = [name] if name in EVALUATING | UNSAFE_YAML else []
    if name in NEEDED and given.get(NEEDED[name][0]) != str(NEEDED[name][1]):
        found.append(name)
    if given.get("trust_remote_code") == "True" or (name.endswith("load_dataset") and "trust_remote_code" in given):
        found.append(f"{name}(trust_remote_code)")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "import pickle",
        "import dill as json",
        "from pickle import loads",
        "yaml.load(text, Loader)",
        "from yaml import unsafe_load",
        "eval(text)",
        "def f():\n    exec(text)",
        "datasets.load_dataset(name, trust_remote_code=trust)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_unsafe_source_is_recognised(source: str) -> None:
    assert unsafe(source)


@pytest.mark.parametrize(
    "source", ["torch.load(path, weights_only=True)", "yaml.safe_load(text)", "model.eval()", "re.compile(text)"]
)
def test_safe_source_is_left_alone(source: str) -> None:
    assert not unsafe(source)


def test_the_package_evaluates_and_unpickles_nothing() -> None:
    assert len(SOURCES) > 50
    found = {path.name: unsafe(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert not {name: names for name, names in found.items() if names}


HUB = "org/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ON_A_LAPTOP = ["--use_cpu", "true"]


def recipe(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "own.yaml"
    given = ["train_data: toy:train", "num_generations: 8", "bf16: false", "beta: 0", *lines]
    merged = {line.split(":")[0]: line for line in given}
    path.write_text("\n".join(merged.values()))
    return path


def test_remote_code_is_off_by_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_recipe(recipe(tmp_path, f"model_name_or_path: {HUB}"), ON_A_LAPTOP)
    assert loaded.config.trust_remote_code is False
    assert not caplog.records


@pytest.mark.parametrize("revision", ["", "main", "v1.0", COMMIT[:10], COMMIT.upper()])
def test_remote_code_without_a_commit_is_refused(tmp_path: Path, revision: str) -> None:
    named = [
        f"model_name_or_path: {HUB}",
        "trust_remote_code: true",
        *([f"model_revision: {revision}"] if revision else []),
    ]
    with pytest.raises(
        RecipeError, match=f"model_revision '{revision or 'main'}' would run whatever code {HUB} has"
    ) as error:
        load_recipe(recipe(tmp_path, *named), ON_A_LAPTOP)
    assert "set model_revision to its 40 characters" in str(error.value)
    assert f"`hf download {HUB} --revision COMMIT --local-dir FOLDER`" in str(error.value)


def test_remote_code_of_a_commit_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pinned = [f"model_name_or_path: {HUB}", "trust_remote_code: true", f"model_revision: {COMMIT}"]
    assert load_recipe(recipe(tmp_path, *pinned), ON_A_LAPTOP).config.trust_remote_code
    assert caplog.messages == [f"trust_remote_code: Python code of {HUB} at commit {COMMIT} will run."]


def test_a_reference_model_would_not_be_pinned(tmp_path: Path) -> None:
    pinned = [f"model_name_or_path: {HUB}", "trust_remote_code: true", f"model_revision: {COMMIT}", "beta: 0.01"]
    with pytest.raises(
        RecipeError,
        match=r"beta 0.01 would load the newest .* as the reference model, not model_revision.*or set beta: 0",
    ):
        load_recipe(recipe(tmp_path, *pinned), ON_A_LAPTOP)
    load_recipe(recipe(tmp_path, *pinned, "use_peft: true"), ON_A_LAPTOP)


def test_a_folder_is_pinned_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_recipe(recipe(tmp_path, f"model_name_or_path: {tmp_path}", "trust_remote_code: true"), ON_A_LAPTOP)
    assert caplog.messages == [f"trust_remote_code: Python code in the folder {tmp_path} will run."]


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("config.json", {"AutoModelForImageTextToText": "org/code--modeling.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "org/code--tokens.Tokenizer"]}),
    ],
)
def test_code_of_another_repository_is_refused(tmp_path: Path, file: str, auto_map: dict) -> None:
    folder = Path(shutil.copytree(checkpoint_path(), tmp_path / "copy"))
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), "auto_map": auto_map}))
    model = ModelConfig(model_name_or_path=str(folder))
    taken = rf"{file} of '.*copy' takes \w+\.\w+ from another repository, 'org/code'"
    with pytest.raises(RecipeError, match=taken):
        load_model(model, trust_remote_code=True)
    with pytest.raises(RecipeError, match=taken):
        load_processor(model, trust_remote_code=True, min_pixels=None, max_pixels=None)


def test_code_in_the_folder_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_path(), tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "of_its_own", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    model = ModelConfig(model_name_or_path=str(folder))
    with pytest.raises(RecipeError, match="cannot be loaded"):
        load_model(model, trust_remote_code=False)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(RecipeError, match="cannot be loaded"):
        load_model(model, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_a_data_set_script_does_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(DataError):
        load_dataset(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.train
def test_a_resume_unpickles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch reads all of the training state as plain weights: our file, and those of transformers."""

    def run(max_steps: int) -> VGPOTrainer:
        return VGPOTrainer(
            model=AutoModelForImageTextToText.from_pretrained(checkpoint_path()),
            processing_class=AutoProcessor.from_pretrained(checkpoint_path(), padding_side="left"),
            reward_funcs=coin,
            args=VGPOConfig(
                output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
                dataloader_pin_memory=False, disable_tqdm=True, num_generations=GROUP, max_steps=max_steps,
                per_device_train_batch_size=GROUP, gradient_accumulation_steps=1, max_completion_length=4,
                save_strategy="steps", save_steps=1,
            ),
            train_dataset=rows_with_pictures(4),
        )  # fmt: skip

    run(1).train()
    read = torch.load
    weights_only = {}

    def load(file, *args, **kwargs):
        weights_only[Path(file).name] = kwargs.get("weights_only")
        return read(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    resumed = run(2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2
    assert weights_only == dict.fromkeys(["step_state_0.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"], True)
