"""Rewards in verl's reward workers are those of the recipe, called as TRL calls them."""

import asyncio
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from tensordict import TensorDict
from torch import ones, tensor
from verl import DataProto

from vgpo.recipe.loading import PlainCheckpoint, load_processor
from vgpo.verl.config import load_recipe
from vgpo.verl.dataset import COLUMNS, HELD_OUT, TRAIN, VGPODataset, load_rows, processor_of_recipe
from vgpo.verl.rewards import ANSWER, ERROR, VGPORewardManager

REWARDS = """
def with_everything(completions, prompts, completion_ids, images, row_index, trainer_state, log_metric, **rest):
    log_metric("mine/length", len(completion_ids[0]))
    assert completions[0][0]["role"] == "assistant", completions
    assert prompts[0][0]["role"] == "user"
    assert images[0][0].size == (8, 8)
    assert trainer_state.max_steps == 10
    assert trainer_state.global_step == 2  # two are done while the third is rolled out
    return [0.25]

async def later(completions, **rest):
    return [None]

def broken(completions, **rest):
    return [1 / 0]
"""


@pytest.fixture(scope="module")
def tokenizer():
    processor = load_processor(PlainCheckpoint("toy"), trust_remote_code=False, min_pixels=None, max_pixels=None)
    return processor.tokenizer


def config_of(tmp_path, *words):
    (tmp_path / "rewards.py").write_text(REWARDS)
    names = [f"{tmp_path}/rewards.py:{word}" if word in REWARDS else word for word in words]
    recipe = load_recipe("quickstart_vgpo", ["--host", "verl", "--run_dir", str(tmp_path), "--rewards", *names])
    ends = [processor_of_recipe(recipe).tokenizer.eos_token_id]
    return OmegaConf.create(
        {
            "vgpo": {"recipe": recipe.fields, "end_token_ids": ends},
            "actor_rollout_ref": {"actor": {"optim": {"total_training_steps": 10}}},
        }
    )


def rollout(tokenizer, text, *, source=TRAIN, answer="3"):
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    batch = TensorDict(
        {"prompts": tensor([[1]]), "responses": tensor([ids]), "attention_mask": ones(1, 1 + len(ids), dtype=int)}, [1]
    )
    blocks = [{"type": "image", "image": Image.new("RGB", (8, 8))}, {"type": "text", "text": "How many?"}]
    fields = {
        "raw_prompt": [{"role": "user", "content": blocks}],
        COLUMNS: {"answer": answer, "problem": "How many?", "row_index": 5},
        "data_source": source,
        "global_steps": 3,
    }
    columns = {name: np.fromiter([value], dtype=object, count=1) for name, value in fields.items()}
    return DataProto(batch=batch, non_tensor_batch=columns)


def grade(config, tokenizer, data):
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    manager = VGPORewardManager(config, tokenizer, None)
    manager.loop = loop
    try:
        return loop.run_until_complete(manager.run_single(data))
    finally:
        loop.close()
        asyncio.set_event_loop(None)


def test_rewards_are_weighted_and_each_is_kept_under_its_name(tmp_path, tokenizer):
    config = config_of(tmp_path, "accuracy", "with_everything", "later")
    config.vgpo.recipe.reward_weights = [2.0, 4.0, 8.0]
    result = grade(config, tokenizer, rollout(tokenizer, "\\boxed{3}"))
    info = result["reward_extra_info"]
    assert result["reward_score"] == 2.0 * 1.0 + 4.0 * 0.25
    assert info["accuracy_reward"] == 1.0
    assert info["with_everything"] == 0.25
    assert math.isnan(info["later"])
    assert info["metric/mine/length"] == len(tokenizer("\\boxed{3}")["input_ids"]) + 1
    assert ANSWER not in info


def test_a_wrong_answer_has_no_reward(tmp_path, tokenizer):
    result = grade(config_of(tmp_path, "accuracy"), tokenizer, rollout(tokenizer, "\\boxed{4}"))
    assert result["reward_score"] == 0.0


def test_a_reward_that_raises_is_reported_to_the_driver(tmp_path, tokenizer):
    result = grade(config_of(tmp_path, "accuracy", "broken"), tokenizer, rollout(tokenizer, "\\boxed{3}"))
    assert "'broken' raised ZeroDivisionError" in result["reward_extra_info"][ERROR]
    assert math.isnan(result["reward_extra_info"]["accuracy_reward"])  # present: verl's filter asks for it


def test_answers_to_held_out_questions_are_kept(tmp_path, tokenizer):
    data = rollout(tokenizer, "\\boxed{3}", source=HELD_OUT)
    info = grade(config_of(tmp_path, "accuracy"), tokenizer, data)["reward_extra_info"]
    assert json.loads(info[ANSWER]) == {"row": 5, "completion": "\\boxed{3}", "truncated": False}


def test_samples_hold_the_messages_with_their_images_and_all_columns(tmp_path):
    recipe = load_recipe("quickstart_vgpo", ["--host", "verl", "--run_dir", str(tmp_path), "--eval_limit", "2"])
    data = OmegaConf.create({"vgpo": {"recipe": recipe.fields}})
    held_out = VGPODataset(HELD_OUT, None, data)
    assert len(held_out) == 2
    sample = held_out[1]
    images, videos, audios = asyncio.run(VGPODataset.process_multi_modal_info(sample["raw_prompt"], 14, None))
    assert [image.size for image in images] == [image.size for image in held_out.rows[1]["images"]]
    assert (videos, audios) == (None, None)
    assert sample["index"] == 1
    assert sample[COLUMNS]["answer"] == held_out.rows[1]["answer"]
    assert sample[COLUMNS]["row_index"] == 1


def test_a_recipe_without_held_out_questions_has_none(tmp_path):
    recipe = load_recipe("quickstart_vgpo", ["--host", "verl", "--run_dir", str(tmp_path)])
    run = SimpleNamespace(**{**vars(recipe.run), "eval_data": None})
    assert load_rows(SimpleNamespace(run=run, arguments=recipe.arguments), HELD_OUT) == []
