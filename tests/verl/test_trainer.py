"""The mixin on verl's driver, with a TransferQueue of plain dictionaries."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from tests.verl.test_rollouts import Queue, row
from vgpo.equations import VGPOSettings, reweight_advantages
from vgpo.recipe.errors import RecipeError
from vgpo.rewards import RewardError
from vgpo.training.metrics import RunningRatios
from vgpo.verl import rollouts, trainer
from vgpo.verl.names import CORRUPTED, CORRUPTION_FLAG, SIMILARITY, SIMILARITY_FLAG
from vgpo.verl.recipe import load_recipe
from vgpo.verl.rewards import ERROR
from vgpo.verl.trainer import VGPOTrainerSync

IMAGE = 7
KEYS = ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]


class WritableQueue(Queue):
    def kv_batch_put(self, keys, partition_id, fields):
        for name, value in fields.items():
            for key, tensor in zip(keys, value.unbind(), strict=True):
                self.rows[key][name] = tensor.tolist()


@pytest.fixture
def queue(monkeypatch):
    rows = {
        "a_0_0": row("a", 0, [1, 1, 1, 2], advantage=1.0, **{SIMILARITY: [0, 0, 0, 0.1, 0.9, 0.2, 0.4]}),
        "a_1_0": row("a", 0, [1, 2], advantage=-1.0, **{SIMILARITY: [0, 0, 0, 0.3, 0.5]}),
        "b_0_0": row("b", 1, [1, 1, 2], advantage=0.5, **{SIMILARITY: [0, 0, 0, 0.9, 0.1, 0.3]}),
        "b_1_0": row("b", 1, [2], advantage=-0.5, prompt=(8, 9), num_images=0, **{SIMILARITY: [0, 0, 0]}),
        "pad_0_0": row("pad", 0, [0]),
    }
    for one in rows.values():  # as TransferQueue keeps them
        one[SIMILARITY] = [float(value) for value in one[SIMILARITY]]
    queue = WritableQueue(rows)
    monkeypatch.setattr(rollouts, "tq", queue)
    monkeypatch.setattr(trainer, "tq", queue)
    monkeypatch.setattr(PPOTrainer, "_compute_advantage", lambda self, batch, metrics: batch)
    return queue


@pytest.fixture
def host():
    host = object.__new__(VGPOTrainerSync)
    host.recipe = load_recipe("quickstart_vgpo", ["--host", "verl"])
    host.shaping = host.recipe.method.build_shaping()
    host.required = frozenset({"similarity"})
    host.recorder = SimpleNamespace(num_groups=0)
    host.global_steps, host.total_training_steps = 1, 10
    host._visual_token_ids = [IMAGE]
    host.parameter_sync_step = 1
    host.config = OmegaConf.create(
        {
            "algorithm": {"adv_estimator": "rloo", "norm_adv_by_std_in_grpo": True},
            "vgpo": {"banned_token_ids": [IMAGE]},
            "actor_rollout_ref": {"rollout": {"temperature": 0.7}},
        }
    )
    host._ratios = RunningRatios()
    host._write_rollouts = lambda *args: None
    return host


def batch_of(keys):
    tags = [{"is_padding": key.startswith("pad")} for key in keys]
    return SimpleNamespace(keys=list(keys), tags=tags, partition_id="train", extra_info={})


def test_advantages_are_shaped_by_group_wherever_its_rollouts_are(host, queue):
    result = host._compute_advantage(batch_of(["b_1_0", "pad_0_0", "a_1_0", "b_0_0", "a_0_0"]), {})
    assert result.keys == ["b_1_0", "pad_0_0", "a_1_0", "b_0_0", "a_0_0"]
    similarity = torch.tensor([[0.1, 0.9, 0.2, 0.4], [0.3, 0.5, 0, 0], [0.9, 0.1, 0.3, 0], [0.0, 0, 0, 0]])
    lengths = torch.tensor([4, 2, 3, 1])
    mask = torch.arange(4) < lengths[:, None]
    expected = reweight_advantages(
        torch.tensor([1.0, -1.0, 0.5, -0.5]), similarity, mask, torch.tensor([0, 0, 1, 1]), VGPOSettings(),
        visual_rows=torch.tensor([True, True, True, False]),
    ).advantages  # fmt: skip
    for number, key in enumerate(KEYS):
        written = torch.tensor(queue.rows[key]["advantages"])
        assert torch.allclose(written, expected[number, : lengths[number]], atol=1e-6), key
    assert queue.rows["pad_0_0"]["advantages"] == [1.0]  # as verl left it
    assert queue.rows["b_1_0"]["advantages"] == [-0.5]  # no image: as verl computed it


def test_advantages_of_grpo_are_computed_from_the_rewards(host, queue):
    host.config.algorithm.adv_estimator = "grpo"
    for key, reward in {"a_0_0": 1.0, "a_1_0": 0.0, "b_0_0": 1.0, "b_1_0": 1.0}.items():
        queue.rows[key]["extra_fields"]["reward_extra_info"]["accuracy_reward"] = reward
    host._compute_advantage(batch_of(KEYS), {})
    assert all(value > 0 for value in queue.rows["a_0_0"]["advantages"])
    assert all(value < 0 for value in queue.rows["a_1_0"]["advantages"])
    assert queue.rows["b_0_0"]["advantages"] == [0.0, 0.0, 0.0]  # of verl: 0.5


def test_a_prompt_whose_images_the_template_left_out_is_an_error(host, queue):
    queue.rows["b_1_0"]["num_images"] = 1
    with pytest.raises(ValueError, match=r"Row 1 has 1 image\(s\), but its prompt holds none"):
        host._compute_advantage(batch_of(KEYS), {})


def test_a_response_with_an_image_token_is_an_error(host, queue):
    queue.rows["a_1_0"]["responses"] = [1, IMAGE]
    with pytest.raises(RuntimeError, match="A rollout of row 0 holds the image token 7 at position 1"):
        host._compute_advantage(batch_of(KEYS), {})


def test_rollouts_that_failed_are_counted_and_reported(host, queue, caplog):
    host._compute_advantage(batch_of(KEYS), {})
    assert host._failed == 128 - 4  # of the recipe
    assert "124 of 128 rollouts have failed" in caplog.text


def test_the_order_of_rows_changes_no_advantage(host, queue):
    before = {key: list(queue.rows[key]["advantages"]) for key in KEYS}
    host._compute_advantage(batch_of(KEYS), {})
    first = {key: queue.rows[key]["advantages"] for key in KEYS}
    assert first != before
    for key in KEYS:
        queue.rows[key]["advantages"] = before[key]
    host._compute_advantage(batch_of(["b_0_0", "a_1_0", "b_1_0", "a_0_0"]), {})
    for key in KEYS:
        assert queue.rows[key]["advantages"] == pytest.approx(first[key], abs=1e-6)


def test_an_engine_that_measures_nothing_is_an_error(host, queue):
    for fields in queue.rows.values():
        del fields[SIMILARITY]
    with pytest.raises(RuntimeError, match=r"model_type and external_lib as `python -m vgpo\.verl` does"):
        host._compute_advantage(batch_of(KEYS), {})


def test_what_a_reward_did_wrong_is_raised_on_the_driver(host, queue):
    queue.rows["a_1_0"]["extra_fields"]["reward_extra_info"][ERROR] = "reward 'mine' raised ValueError"
    with pytest.raises(RewardError, match="reward 'mine' raised ValueError"):
        host._compute_advantage(batch_of(KEYS), {})


def test_only_the_pass_of_the_policy_measures_similarity(host, monkeypatch):
    seen = []

    def compute(self, batch, metrics):
        seen.append(dict(batch.extra_info))
        return batch

    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", compute)
    batch = batch_of(KEYS)
    result = host._compute_old_log_prob(batch, {})
    assert seen == [{SIMILARITY_FLAG: True}]
    assert result.extra_info == {SIMILARITY_FLAG: False}


def test_the_flag_is_cleared_where_the_pass_fails(host, monkeypatch):
    def fail(self, batch, metrics):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", fail)
    batch = batch_of(KEYS)
    with pytest.raises(RuntimeError, match="out of memory"):
        host._compute_old_log_prob(batch, {})
    assert batch.extra_info == {SIMILARITY_FLAG: False}


def test_a_shaping_that_compares_with_black_patches_has_one_more_pass(host, queue, monkeypatch):
    seen = []

    def score(batch):
        seen.append(dict(batch.extra_info))
        for fields in queue.rows.values():
            fields["log_probs"] = [float(number) for number in range(len(fields["prompts"] + fields["responses"]))]

    fresh = batch_of(KEYS)  # TransferQueue returns a batch without the extra_info of the one before
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: fresh)
    host.actor_rollout_wg = SimpleNamespace(compute_log_prob=score)
    host.required = frozenset({"log_probs", CORRUPTED})
    batch = batch_of(KEYS)
    host._compute_old_log_prob(batch, {})
    seed = host.recipe.arguments.seed
    assert seen == [
        {
            SIMILARITY_FLAG: False,
            CORRUPTION_FLAG: seed,
            "calculate_entropy": False,
            "compute_loss": False,
            "temperature": 0.7,
        }
    ]
    assert fresh.extra_info[CORRUPTION_FLAG] is None
    # Three prompt tokens and four of the response: the output before each of them.
    assert queue.rows["a_0_0"][CORRUPTED] == [2.0, 3.0, 4.0, 5.0]


def test_trainers_are_registered_and_an_unknown_mode_lists_them():
    assert get_trainer_cls("vgpo_sync") is VGPOTrainerSync
    with pytest.raises(ValueError, match=r"Unknown trainer 'vgpo_sink'.*vgpo_sync"):
        get_trainer_cls("vgpo_sink")


@pytest.mark.parametrize(
    ("shaping", "missing"),
    [("pepo", "layer_similarity"), ("pgpo", "text_only_log_probs")],
)
def test_a_shaping_that_verl_computes_no_signals_for_is_refused_by_name(shaping, missing):
    with pytest.raises(RecipeError, match=f"shaping is '{shaping}', expected one of vgpo.*do not compute .*{missing}"):
        load_recipe("quickstart_vgpo", ["--host", "verl", "--shaping", shaping])


def test_a_blind_gate_is_refused_by_name():
    options = ["--shaping", "adaptive", "--shaping_options", '{"blind_gate": true}']
    with pytest.raises(RecipeError, match=r"shaping_options is .*expected no blind_gate: .*host: trl"):
        load_recipe("quickstart_vgpo", ["--host", "verl", *options])


@pytest.mark.parametrize("shaping", ["vgpo", "entropy", "kl_perception", "none"])
def test_shapings_whose_signals_are_there_are_taken(shaping):
    assert load_recipe("quickstart_vgpo", ["--host", "verl", "--shaping", shaping]).method.shaping == shaping
