"""Complete runs on verl: from a recipe to a run folder that every reader understands."""

import json
import math
import shutil
from collections import defaultdict
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

from tests.verl.launch import run_on_cpu
from vgpo.checkpoints import CheckpointStore
from vgpo.equations import VGPOSettings, reweight_advantages
from vgpo.policy.head import scoring_head
from vgpo.policy.prompts import encode, prompt_columns
from vgpo.policy.scoring import Rows, score_rows
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import PlainCheckpoint, load_model, load_processor
from vgpo.report import write_report
from vgpo.rewards import RewardError
from vgpo.run import RunFolder, RunFolderError
from vgpo.toy import checkpoint_path
from vgpo.verl.config import compose, load_recipe
from vgpo.verl.main import train, wired

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]

SMALL = {
    "per_device_train_batch_size": "16",
    "gradient_accumulation_steps": "1",
    "num_generations": "4",
    "max_steps": "3",
    "eval_limit": "12",
    "log_rollouts_steps": "1",
    "log_rollouts_groups": "100",
    "learning_rate": "1e-3",
}


def run(folder: Path, **fields: str) -> RunFolder:
    words = [word for name, value in (SMALL | fields).items() for word in (f"--{name}", value)]
    recipe = load_recipe("quickstart_vgpo", ["--host", "verl", "--run_dir", str(folder), *words])
    return train(recipe, command=["test"], launch=run_on_cpu)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three steps with a reference model, saved after the first two."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    return run(
        folder,
        beta="0.05",
        use_bias_correction_kl="false",
        dynamic_sampling="false",
        save_strategy="steps",
        save_steps="2",
    )


def test_every_step_has_the_metrics_of_a_run_on_trl(trained):
    lines = trained.read_metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    for line in lines[:3]:
        for name in ("loss", "reward", "reward_std", "entropy", "kl", "grad_norm", "learning_rate", "num_tokens",
                     "completions/mean_length", "rewards/accuracy_reward/mean", "focus/mean", "focus/gate_rate",
                     "shaping/token_factor_spread", "time/generation", "time/update", "step_time"):  # fmt: skip
            assert math.isfinite(line[name]), name
        assert line["sampling/log_prob_gap"] < 1e-4  # rollouts are of the weights that are updated
        assert line["focus/rows_without_image"] == 0
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert lines[2]["kl"] > 1e-4
    assert lines[3]["train_runtime"] > 0


def test_the_run_folder_is_finished_evaluated_and_reported(trained):
    evaluation = trained.read_evaluation()
    assert {when: scores["num_questions"] for when, scores in evaluation.items()} == {"before": 12, "after": 12}
    assert all(answer["completion"] for answer in evaluation["before"]["answers"])
    assert trained.read_finished().step == 3
    assert trained.read_config()["accuracy_reward"] == "accuracy_reward"
    assert trained.read_config()["train_data"] == "toy:train"
    write_report([trained.path], trained.path / "again.html")
    assert "accuracy" in (trained.path / "again.html").read_text()


def test_its_checkpoints_are_those_of_any_run(trained):
    store = CheckpointStore(trained.checkpoints_path, keep=None)
    assert store.complete_steps() == [3, 2]
    assert CheckpointStore.verify(trained.final_path) is None
    model = load_model(PlainCheckpoint(str(trained.final_path)), trust_remote_code=False)
    assert model.dtype == torch.float32
    start = load_model(PlainCheckpoint("toy"), trust_remote_code=False)
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True)]
    assert any(moved)


def test_factors_are_those_of_the_trl_host_on_the_same_rollouts(trained):
    """Similarity of the first step by the scoring pass of the TRL host; factors by the equations."""
    records = [record for record in trained.read_rollouts() if record.step == 1]
    assert len(records) == 16
    groups = defaultdict(list)
    for record in records:
        groups[record.group].append(record)
    processor = load_processor(PlainCheckpoint("toy"), trust_remote_code=False, min_pixels=None, max_pixels=None)
    model = load_model(PlainCheckpoint("toy", dtype="float32"), trust_remote_code=False).eval()
    similarity, mask = scored_by_trl_host(model, processor, records, trained)
    numbers = torch.tensor([record.group for record in records])
    advantages = torch.tensor([record.advantage for record in records])
    expected = reweight_advantages(
        advantages, similarity, mask, numbers, VGPOSettings(), visual_rows=torch.ones(16, dtype=torch.bool)
    )
    for row, record in enumerate(records):
        tokens = len(record.tokens)
        assert record.diagnostics["rollout_factor"] == pytest.approx(float(expected.rollout_factor[row]), abs=1e-6)
        found = torch.tensor(record.diagnostics["token_factor"])
        assert torch.allclose(found, expected.token_factor[row, :tokens], atol=1e-6)
        assert torch.allclose(torch.tensor(record.token_advantages), expected.advantages[row, :tokens], atol=1e-5)


def scored_by_trl_host(model, processor, records, folder):
    """Similarity (B, T) and response mask of rollouts, each after its prompt, padded as TRL pads them."""
    from vgpo.recipe.loading import load_prompts

    rows = load_prompts("toy:train", "plain", toy_folder=folder.path / "data")
    device = torch.device("cpu")
    prompts = [encode(processor, rows[record.row], {}, device) for record in records]
    columns = prompt_columns(prompts, processor.tokenizer.pad_token_id, device)
    width = max(len(record.token_ids) for record in records)
    pad = processor.tokenizer.pad_token_id
    ids = torch.tensor([record.token_ids + [pad] * (width - len(record.token_ids)) for record in records])
    mask = torch.tensor([[1] * len(record.token_ids) + [0] * (width - len(record.token_ids)) for record in records])
    scored = Rows(
        torch.cat([columns["prompt_ids"], ids], 1), torch.cat([columns["prompt_mask"], mask], 1),
        columns["prompt_ids"].shape[1], prompts,
    )  # fmt: skip
    with torch.no_grad(), scoring_head(model):
        scores = score_rows(model, scored, [model.config.image_token_id], share=False, similarity=True)
    return scores.similarity, mask.bool()


def test_a_run_goes_on_from_its_last_checkpoint(trained, tmp_path):
    folder = tmp_path / "resumed"
    fields = {"dynamic_sampling": "false", "save_strategy": "steps", "save_steps": "1"}
    run(folder, max_steps="1", **fields)
    first, before = RunFolder(folder).read_metrics(), RunFolder(folder).read_evaluation()["before"]
    with pytest.raises(RunFolderError, match="is finished: 1 steps"):
        run(folder, max_steps="1", resume="true", **fields)
    with pytest.raises(RecipeError, match=r"(?s)belongs to another run:.*seed was 0, is 1"):
        run(folder, max_steps="2", seed="1", resume="true", **fields)
    resumed = run(folder, max_steps="2", resume="true", allow_changes="true", **fields)
    assert resumed.read_evaluation()["before"] == before
    lines = [line for line in resumed.read_metrics() if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0] == first[0]
    assert lines[1]["num_tokens"] > lines[0]["num_tokens"]
    assert [one.step for one in resumed.read_resumes()] == [1]


def test_two_workers_filtered_groups_and_a_failed_session(tmp_path):
    folder = run(
        tmp_path / "two",
        num_processes="2",
        per_device_train_batch_size="8",
        max_steps="2",
        verl=json.dumps({"+actor_rollout_ref.rollout.custom.failing_request": 14}),
    )
    lines = [line for line in folder.read_metrics() if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert line["frac_reward_zero_std"] == 0  # groups without a signal were dropped
        assert line["sampling/groups_drawn"] >= line["sampling/groups_kept"]
        assert line["sampling/log_prob_gap"] < 1e-4
    assert all(len(record.tokens) == len(record.token_advantages) for record in folder.read_rollouts())


def test_a_reward_that_fails_ends_the_run_and_is_named(tmp_path):
    (tmp_path / "reward.py").write_text(
        "def accuracy_of_mine(completions, **kwargs):\n    raise ValueError('no such column')\n"
    )
    with pytest.raises(RewardError, match=r"(?s)'accuracy_of_mine' raised ValueError.*no such column"):
        run(tmp_path / "run", rewards=f"{tmp_path}/reward.py:accuracy_of_mine", evaluate_before="false",
            dynamic_sampling="false")  # fmt: skip
    assert not RunFolder(tmp_path / "run").marks  # nothing was trained: the same folder can be taken again


def test_a_set_that_is_too_small_is_found_before_ray_starts(tmp_path):
    with pytest.raises(RecipeError, match="takes 2048 prompts and the training set has"):
        run(tmp_path / "run", per_device_train_batch_size="8192", train_data="toy:test")


def test_a_checkpoint_with_code_of_its_own_is_refused_unless_it_may_run(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_path(), checkpoint)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        RecipeError, match=r"tokenizer_config\.json .* names Python code in auto_map \(evil\.Tokenizer\)"
    ):
        run(tmp_path / "run", model_name_or_path=str(checkpoint))


def test_a_shaping_that_compares_with_black_patches_shapes(tmp_path):
    folder = run(
        tmp_path / "kl", shaping="kl_perception", measure_focus="false", evaluate_before="false", max_steps="1",
        dynamic_sampling="false",
    )  # fmt: skip
    line = folder.read_metrics()[0]
    assert line["shaping/dependency"] > 0
    assert line["shaping/token_factor_spread"] > 0.3  # it drops three of five tokens
    assert "focus/mean" not in line


def test_adapters_are_trained_and_kept_as_adapters(tmp_path):
    merged = json.dumps({"actor_rollout_ref.model.lora.merge": True})  # before weights go to the engine
    folder = run(
        tmp_path / "lora", use_peft="true", lora_r="4", lora_dropout="0", verl=merged, evaluate_before="false",
        max_steps="1", dynamic_sampling="false",
    )  # fmt: skip
    names = {path.name for path in folder.final_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert "model.safetensors" not in names
    trained = load_model(PlainCheckpoint(str(folder.final_path), dtype="float32"), trust_remote_code=False)
    start = load_model(PlainCheckpoint("toy", dtype="float32"), trust_remote_code=False)
    pairs = zip(trained.named_parameters(), start.parameters(), strict=True)
    moved = [name for (name, new), old in pairs if not torch.equal(new, old)]
    assert moved
    assert not [name for name in moved if "visual" in name]


@pytest.mark.skipif("vgpo" not in entry_points(group="verl.plugins").names, reason="needs an installed vgpo")
def test_verls_own_command_trains_a_printed_configuration(tmp_path):
    """As `python -m verl.trainer.main_ppo` does, whose task runner knows nothing of vgpo."""
    words = [word for name, value in (SMALL | {"max_steps": "1"}).items() for word in (f"--{name}", value)]
    fields = {
        "host": "verl",
        "run_dir": str(tmp_path / "run"),
        "evaluate_before": "false",
        "dynamic_sampling": "false",
    }
    words += [word for name, value in fields.items() for word in (f"--{name}", value)]
    recipe = load_recipe("quickstart_vgpo", words)
    run_on_cpu(wired(compose(recipe), recipe, ["main_ppo"]))
    folder = RunFolder.open(tmp_path / "run")
    assert [line["step"] for line in folder.read_metrics()] == [1, 1]
    assert folder.read_metrics()[0]["focus/mean"] > 0
    assert folder.final_path.is_dir()
