"""The folder of a LoRA run, read by every command; and plain checkpoints out of it and out of a run of all weights."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
from click.testing import Result
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from tests.cli import even_sum
from vgpo.checkpoints import CheckpointStore, weight_hash
from vgpo.cli import app
from vgpo.inspection import Inspection
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.export import choose
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.train import train_recipe
from vgpo.run import RunFolder, RunFolderError
from vgpo.study import run as study_run
from vgpo.study.folder import StudyRun
from vgpo.toy import checkpoint_path, write_datasets

TEMPLATE = "plain"  # of both, else the prompts would make the answers differ
REWARD = f"{even_sum.__file__}:even_sum"
SMALL = {
    "rewards": REWARD,
    "template": TEMPLATE,
    "use_cpu": "true",
    "bf16": "false",
    "gradient_checkpointing": "false",
    "parity": "off",
    "learning_rate": "0.02",
    "max_steps": "2",
    "save_strategy": "steps",
    "save_steps": "1",
    "logging_steps": "1",
    "num_generations": "4",
    "per_device_train_batch_size": "8",
    "steps_per_generation": "1",
    "gradient_accumulation_steps": "1",
    "max_completion_length": "12",
    "dynamic_sampling": "false",
    "temperature": "2.0",
    "evaluate_before": "false",
    "disable_tqdm": "true",
}
LORA = {"use_peft": "true", "lora_r": "4"}


def train(run_dir: Path, **fields: object) -> RunFolder:
    words = [word for name, value in {**SMALL, "run_dir": run_dir, **fields}.items() for word in (f"--{name}", value)]
    return train_recipe("quickstart_vgpo", list(map(str, words)), command=["vgpo"])[1].folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield write_datasets(folder, num_train=16, num_test=8, progress=False)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, sets: tuple[Path, Path]) -> RunFolder:
    """A run of LoRA adapters in the toy model, two steps long."""
    return train(tmp_path_factory.mktemp("lora") / "run", train_data=sets[0], eval_data=sets[1], **LORA)


def invoke(*words: object, status: int = 0) -> Result:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    return done


def answers(checkpoint: object, data: Path, out: Path) -> dict:
    invoke("eval", checkpoint, "--data", data, "--max-new-tokens", 12, "--template", TEMPLATE, "--out", out)
    return json.loads(out.read_text())


def adapted(checkpoint: Path) -> PeftModel:
    """The trained model as PEFT has it, with the adapter beside the weights."""
    base = AutoModelForImageTextToText.from_pretrained(checkpoint_path(), dtype="auto")
    return PeftModel.from_pretrained(base, checkpoint).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(10, 40)[None]).logits


@pytest.mark.train
def test_eval_reads_a_lora_run_and_not_its_base(lora: RunFolder, sets: tuple[Path, Path], tmp_path: Path) -> None:
    base = answers("toy", sets[1], tmp_path / "base.json")
    found = answers(lora.final_path, sets[1], tmp_path / "found.json")
    assert found["answers"] != base["answers"]
    after = (lora.read_evaluation() or {})["after"]  # of the run, with the adapter beside the weights
    assert found["answers"] == after["answers"]
    assert found["accuracy"] == after["accuracy"]


@pytest.mark.train
def test_inspect_reads_a_lora_run_and_not_its_base(lora: RunFolder, sets: tuple[Path, Path], tmp_path: Path) -> None:
    found = {}
    for name, checkpoint in {
        "base": "toy",
        "run": lora.final_path,
        "step": lora.checkpoints_path / "checkpoint-2",
    }.items():
        words = ["--rows", "0-1", "--max-new-tokens", 12, "--template", TEMPLATE, "--out", tmp_path / name]
        invoke("inspect", checkpoint, "--data", sets[1], *words)
        questions = Inspection.read(tmp_path / name / "inspection.json").data["questions"]
        found[name] = json.dumps([question["rollouts"] for question in questions])
    assert found["run"] == found["step"]
    assert found["run"] != found["base"]


@pytest.mark.train
def test_a_study_looks_at_the_trained_model_of_a_lora_run(lora: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        study_run, "measure_grounding", lambda model, *args, **options: seen.append(logits(model)) or {}
    )
    config = lora.read_config()
    fields = {name: config[name] for name in ("train_data", "eval_data", *LORA)}
    words = [str(word) for name, value in {**SMALL, **fields}.items() for word in (f"--{name}", value)]
    study_run.grounding_of(load_recipe("quickstart_vgpo", words), StudyRun(lora.path), start=False)
    assert (seen[0] - logits(adapted(lora.final_path))).abs().max() < 3e-5


@pytest.mark.train
def test_a_lora_run_is_trained_further(lora: RunFolder, sets: tuple[Path, Path], tmp_path: Path) -> None:
    start = {"model_name_or_path": lora.final_path, "train_data": sets[0], "eval_data": "", "max_steps": 1}
    more = train(tmp_path / "more", **start, **LORA)
    recorded = json.loads((more.final_path / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert recorded == str(lora.final_path)
    invoke("export", more.path, tmp_path / "both")
    invoke("merge", lora.final_path, tmp_path / "first")
    assert not same(weights(tmp_path / "both"), weights(tmp_path / "first"))
    # All weights, from the first adapter.
    full = train(tmp_path / "full", **start)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "first")
    assert full.read_identity()["start model"] == weight_hash(merged.named_parameters())
    assert more.read_identity()["start model"] == full.read_identity()["start model"]
    assert lora.read_identity()["start model"] != full.read_identity()["start model"]
    assert not same(weights(full.final_path), weights(tmp_path / "first"))


@pytest.mark.train
def test_merge_and_export_write_the_trained_model(lora: RunFolder, tmp_path: Path) -> None:
    said = invoke("merge", lora.final_path, tmp_path / "merged").stdout
    assert f"merged: {lora.final_path} to {tmp_path / 'merged'}: Qwen2_5_VLForConditionalGeneration, 1." in said
    assert "7 files, 4.6 MB, loaded back and equal to the last bit" in said
    said = invoke("export", lora.path, tmp_path / "exported").stdout
    assert f"exported: {lora.final_path} to {tmp_path / 'exported'}: " in said
    assert same(weights(tmp_path / "merged"), weights(tmp_path / "exported"))
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    expected = logits(adapted(lora.final_path))
    assert (logits(plain) - expected).abs().max() < 3e-5
    base = AutoModelForImageTextToText.from_pretrained(checkpoint_path())
    assert (logits(base) - expected).abs().max() > 1e-3


@pytest.mark.train
def test_the_last_checkpoint_is_the_newest_that_is_intact(lora: RunFolder, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora.path, tmp_path / "run"))
    newest = run / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    said = invoke("export", run, tmp_path / "last", "--which", "last").stdout
    assert "skipped: checkpoint-2: adapter_model.safetensors does not hold the bytes that were saved" in said
    assert f"exported: {run / 'checkpoints' / 'checkpoint-1'} to" in said
    expected = logits(adapted(lora.checkpoints_path / "checkpoint-1"))
    assert (logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "last")) - expected).abs().max() < 3e-5
    said = invoke("export", newest.parent, tmp_path / "damaged", status=2).stderr
    assert "checkpoint-2 is damaged: adapter_model.safetensors does not hold" in said
    assert not (tmp_path / "damaged").exists()


@pytest.mark.train
def test_no_file_of_a_run_is_written_over(lora: RunFolder) -> None:
    for out in (lora.final_path, lora.checkpoints_path / "plain"):
        said = invoke("export", lora.path, out, status=2).stderr
        assert "belongs to the run in" in said
        assert "belongs to the run in" in invoke("merge", lora.final_path, out, status=2).stderr
    assert not (lora.checkpoints_path / "plain").exists()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal to the last bit."""
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture
def full(tmp_path: Path) -> RunFolder:
    """The folder of a run of all weights with three checkpoints, whose weights are alike, and no final weights."""
    run = RunFolder.create(tmp_path / "run", {"accuracy_reward": "accuracy"}, seed=0, command=["vgpo"])
    store = CheckpointStore(run.checkpoints_path, keep=None)
    for step in (10, 20, 30):
        shutil.copytree(checkpoint_path(), store.begin(step), dirs_exist_ok=True)
        (store.staging_path(step) / "optimizer.pt").write_bytes(b"state")
        store.commit(step)
    return run


def log(run: RunFolder, accuracies: dict[int, float | None], metric: str = "rewards/accuracy/mean") -> None:
    for step, accuracy in accuracies.items():
        run.log_metrics({"step": step, metric: accuracy})


def test_export_of_all_weights_keeps_every_bit_and_nothing_of_the_trainer(full: RunFolder, tmp_path: Path) -> None:
    invoke("export", full.path, tmp_path / "out", "--which", "last")
    assert same(weights(tmp_path / "out"), weights(checkpoint_path()))
    assert not {"optimizer.pt", "manifest.json", "warmstart.json"} & {
        file.name for file in (tmp_path / "out").iterdir()
    }


def test_the_best_checkpoint_has_the_highest_mean_of_the_steps_up_to_it(full: RunFolder) -> None:
    # Means over up to ten lines: 0.5 up to step 10, 0.7 up to step 20, 0.6 up to step 30.
    log(full, {5: 0.4, 10: 0.6, 11: None, 20: 1.0})
    log(full, dict.fromkeys(range(21, 31), 0.6))
    chosen = choose(str(full.path), "best")
    assert chosen.checkpoint == str(full.checkpoints_path / "checkpoint-20")
    assert chosen.notes == [
        "rewards/accuracy/mean, mean of up to 10 logged lines: 0.600 at step 30, 0.667 at step 20, 0.500 at step 10"
    ]


def test_of_equally_good_checkpoints_the_newest_is_the_best(full: RunFolder) -> None:
    log(full, {10: 0.5, 20: 0.5})
    assert choose(str(full.path), "best").checkpoint.endswith("checkpoint-30")


def test_a_damaged_checkpoint_is_never_the_best(full: RunFolder) -> None:
    log(full, {10: 0.1, 20: 0.9, 30: 0.2})
    (full.checkpoints_path / "checkpoint-20" / "config.json").unlink()
    chosen = choose(str(full.path), "best")
    assert chosen.checkpoint.endswith("checkpoint-30")  # (0.1 + 0.9 + 0.2) / 3 is more than 0.1
    assert chosen.notes[0] == "skipped: checkpoint-20: files missing: config.json"


def test_a_run_without_accuracy_is_judged_by_its_reward(tmp_path: Path, full: RunFolder) -> None:
    full.config_path.write_text("template: plain\n")
    log(full, {10: 0.9, 20: 0.1, 30: 0.1}, metric="reward")
    assert choose(str(full.path), "best").checkpoint.endswith("checkpoint-10")


def test_a_run_that_has_no_such_checkpoint(full: RunFolder) -> None:
    with pytest.raises(RunFolderError, match=r"final does not exist: the run has not finished. `--which last` takes"):
        choose(str(full.path), None)
    with pytest.raises(RunFolderError, match=r"has no 'rewards/accuracy/mean' up to step 30, so the best checkpoint"):
        choose(str(full.path), "best")
    for step in (10, 20, 30):
        (full.checkpoints_path / f"checkpoint-{step}" / "config.json").unlink()
    for which in ("last", "best"):
        with pytest.raises(
            RunFolderError, match=r"contains no intact checkpoint; (.|\n)*checkpoint-10: files missing"
        ):
            choose(str(full.path), which)


def test_damaged_final_weights_are_refused(full: RunFolder) -> None:
    (full.checkpoints_path / "checkpoint-30").rename(full.final_path)
    assert choose(str(full.path), "final").checkpoint == str(full.final_path)
    (full.final_path / "config.json").unlink()
    with pytest.raises(RunFolderError, match=r"final is damaged: files missing: config.json. `--which last` takes"):
        choose(str(full.path), "final")


def test_which_is_for_runs_and_one_of_three_words(full: RunFolder) -> None:
    with pytest.raises(RecipeError, match="--which newest: expected one of final, last, best"):
        choose(str(full.path), "newest")
    with pytest.raises(RecipeError, match="--which last chooses among the checkpoints of a run, but toy is not a run"):
        choose("toy", "last")
    assert choose("toy", None).checkpoint == "toy"


def test_merge_wants_an_adapter(tmp_path: Path) -> None:
    said = invoke("merge", checkpoint_path(), tmp_path / "out", status=2).stderr
    assert "is not an adapter: it has no adapter_config.json" in said
    assert "`vgpo export` writes full weights" in said
    assert not (tmp_path / "out").exists()
