"""Rollouts on verl's driver: read in order, without rows of padding, and with TRL's metrics."""

import math
from types import SimpleNamespace

import pytest
import torch
from tensordict import NonTensorStack, TensorDict

from vgpo.verl import rollouts as module
from vgpo.verl.names import SIMILARITY
from vgpo.verl.rollouts import (
    group_advantages,
    group_std,
    importance_ratios,
    logged_by_rewards,
    read_rollouts,
    response_tokens,
    rollout_advantages,
    rollout_metrics,
)

NAMES = ["accuracy", "format"]
RATIO = "sampling/importance_sampling_ratio/mean"


def nested(rows):
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


class Queue:
    """TransferQueue with the rows of one step: it returns the rows of the keys, and omits fields that it lacks."""

    def __init__(self, rows):
        self.rows = rows

    def kv_batch_get(self, keys, partition_id, select_fields):
        rows = [self.rows[key] for key in keys]
        fields = {}
        for name in select_fields:
            if name not in rows[0]:
                continue
            values = [row[name] for row in rows]
            is_list = isinstance(values[0], list)
            fields[name] = nested(values) if is_list else NonTensorStack(*values)
        return TensorDict(fields, batch_size=len(keys))


def row(uid, index, response, *, prompt=(7, 8, 9), advantage=1.0, accuracy=1.0, similarity=True, **changes):
    tokens = len(response)
    fields = {
        "uid": uid,
        "index": index,
        "num_images": 1,
        "prompts": list(prompt),
        "responses": list(response),
        "response_mask": [1] * tokens,
        "advantages": [advantage] * tokens,
        "old_log_probs": [-0.5] * tokens,
        "entropy": [0.25] * tokens,
        "extra_fields": {"reward_extra_info": {"accuracy": accuracy, "format": 1.0}},
    }
    if similarity:
        fields[SIMILARITY] = [0.0] * len(prompt) + [index + token / 10 for token in range(tokens)]
    return fields | changes


@pytest.fixture
def queue(monkeypatch):
    rows = {
        "b_0_0": row("b", 1, [3, 4, 2]),
        "a_0_0": row("a", 0, [5, 2], advantage=-1.0, accuracy=0.0),
        "pad_0_0": row("pad", 0, [0]),
        "b_1_0": row("b", 1, [3], prompt=(7,)),
    }
    queue = Queue(rows)
    monkeypatch.setattr(module, "tq", queue)
    return queue


def batch_of(*keys):
    tags = [{"is_padding": key.startswith("pad")} for key in keys]
    return SimpleNamespace(keys=list(keys), tags=tags, partition_id="train")


def test_rollouts_keep_the_order_of_the_keys_and_leave_padding_rows_out(queue):
    rollouts = read_rollouts(batch_of("b_0_0", "pad_0_0", "a_0_0", "b_1_0"), {"similarity"})
    assert rollouts.keys == ["b_0_0", "a_0_0", "b_1_0"]
    assert rollouts.group_ids.tolist() == [0, 1, 0]
    assert rollouts.row_index.tolist() == [1, 0, 1]
    assert rollouts.responses.tolist() == [[3, 4, 2], [5, 2, 0], [3, 0, 0]]
    assert rollouts.response_mask.tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    assert rollouts.lengths.tolist() == [3, 2, 1]


def test_rows_in_another_order_are_the_same_rows(queue):
    keys = ["b_0_0", "a_0_0", "b_1_0"]
    ordered = read_rollouts(batch_of(*keys), {"similarity"})
    permuted = read_rollouts(batch_of(*[keys[i] for i in (2, 0, 1)]), {"similarity"})
    assert torch.equal(permuted.similarity, ordered.similarity[[2, 0, 1]])
    assert torch.equal(permuted.advantages, ordered.advantages[[2, 0, 1]])


def test_similarity_is_that_of_the_token_itself_and_not_of_the_one_before(queue):
    rollouts = read_rollouts(batch_of("a_0_0", "b_0_0"), {"similarity"})
    assert torch.allclose(rollouts.similarity, torch.tensor([[0.0, 0.1, 0.0], [1.0, 1.1, 1.2]]))


def test_predicting_similarity_is_that_of_the_token_before(queue):
    queue.rows["a_0_0"][SIMILARITY][:3] = [7.0, 8.0, 9.0]  # the prompt
    rollouts = read_rollouts(batch_of("a_0_0", "b_0_0"), {"predicting_similarity"})
    assert torch.allclose(rollouts.predicting_similarity, torch.tensor([[9.0, 0.0, 0.0], [0.0, 1.0, 1.1]]))
    assert rollouts.similarity is None
    both = read_rollouts(batch_of("a_0_0", "b_0_0"), {"similarity", "predicting_similarity"})
    assert torch.equal(both.predicting_similarity, rollouts.predicting_similarity)
    assert torch.allclose(both.similarity, torch.tensor([[0.0, 0.1, 0.0], [1.0, 1.1, 1.2]]))


def test_a_missing_similarity_says_which_engine_computes_it(queue):
    for fields in queue.rows.values():
        fields.pop(SIMILARITY)
    with pytest.raises(RuntimeError, match=rf"no {SIMILARITY}; found .*set actor_rollout_ref\.model\.model_type"):
        read_rollouts(batch_of("a_0_0"), {"similarity"})
    assert read_rollouts(batch_of("a_0_0"), ()).similarity is None


def test_another_missing_field_is_named(queue):
    queue.rows["a_0_0"].pop("entropy")
    with pytest.raises(RuntimeError, match="no entropy; found"):
        read_rollouts(batch_of("a_0_0"), {"similarity"})


def test_response_tokens_are_the_last_ones():
    values = nested([[1.0, 2.0, 3.0], [4.0, 5.0]])
    assert response_tokens(values, torch.tensor([1, 2])).tolist() == [[3.0, 0.0], [4.0, 5.0]]
    assert response_tokens(values, torch.tensor([2, 1]), earlier=1).tolist() == [[1.0, 2.0], [4.0, 0.0]]


def test_the_advantage_of_a_rollout_is_that_of_all_its_tokens():
    advantages = torch.tensor([[0.0, 2.0, 2.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[False, True, True], [True, False, False], [False, False, False]])
    assert rollout_advantages(advantages, mask).tolist() == [2.0, -1.0, 0.0]


def test_advantages_that_differ_within_a_rollout_name_the_estimator():
    with pytest.raises(ValueError, match=r"algorithm\.adv_estimator .* Set it to grpo"):
        rollout_advantages(torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool))


def test_metrics_have_the_names_and_definitions_of_trl(queue):
    rollouts = read_rollouts(batch_of("b_0_0", "a_0_0", "b_1_0"), {"similarity"})
    metrics = rollout_metrics(rollouts, NAMES, [1.0, 0.5], ends=[2])
    assert metrics["rewards/accuracy/mean"] == pytest.approx(2 / 3)
    assert metrics["reward"] == pytest.approx((1.5 + 0.5 + 1.5) / 3)
    # Of 1.5, 0.5, 1.5 with n - 1: sqrt(((1/3)^2 + (2/3)^2 + (1/3)^2) / 2).
    assert metrics["reward_std"] == pytest.approx((6 / 9 / 2) ** 0.5)
    assert metrics["frac_reward_zero_std"] == 1.0  # two groups, each with one reward
    assert metrics["completions/mean_length"] == 2.0
    assert metrics["completions/clipped_ratio"] == pytest.approx(1 / 3)  # [3] has no end
    assert metrics["completions/mean_terminated_length"] == 2.5
    assert metrics["completions/max_terminated_length"] == 3.0
    assert metrics["entropy"] == pytest.approx(0.25)


def test_a_reward_that_does_not_apply_counts_in_no_mean(queue):
    queue.rows["a_0_0"]["extra_fields"]["reward_extra_info"]["accuracy"] = float("nan")
    rollouts = read_rollouts(batch_of("b_0_0", "a_0_0"), {"similarity"})
    metrics = rollout_metrics(rollouts, NAMES, [1.0, 1.0], ends=[2])
    assert metrics["rewards/accuracy/mean"] == 1.0
    assert metrics["reward"] == pytest.approx((2 + 1) / 2)


def test_a_rollout_that_no_reward_applies_to_counts_in_no_metric(queue):
    for name in NAMES:
        queue.rows["a_0_0"]["extra_fields"]["reward_extra_info"][name] = float("nan")
    rollouts = read_rollouts(batch_of("b_0_0", "a_0_0"), {"similarity"})
    assert rollout_metrics(rollouts, NAMES, [1.0, 1.0], ends=[2])["reward"] == 2.0
    assert rollouts.total_rewards(NAMES, [1.0, 1.0]).isnan().tolist() == [False, True]


def trl_advantages(rewards, scale):
    """TRL's formula for one group, written separately."""
    known = [reward for reward in rewards if reward == reward]
    mean = sum(known) / len(known)
    variance = sum((reward - mean) ** 2 for reward in known) / (len(known) - 1)
    return [0.0 if r != r else (r - mean) / (variance**0.5 + 1e-4) if scale else r - mean for r in rewards]


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_of_groups_are_those_of_trl(scale):
    nan = float("nan")
    groups = {0: [1.0, 0.0, 0.5, 1.0], 1: [0.0, nan, 1.0]}
    values = [(group, reward) for group, rewards in groups.items() for reward in rewards]
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.tensor([values[i][0] for i in order])
    total = torch.tensor([values[i][1] for i in order])
    expected = [value for rewards in groups.values() for value in trl_advantages(rewards, scale)]
    found = group_advantages(total, ids, scale=scale)
    assert found.tolist() == pytest.approx([expected[i] for i in order], abs=1e-6)


@pytest.mark.parametrize("reward", [0.9, 0.3, 1.2])
def test_equal_rewards_have_no_advantage(reward):
    advantages = group_advantages(torch.full((8,), reward), torch.zeros(8, dtype=torch.long), scale=True)
    assert advantages.tolist() == [0.0] * 8


def test_the_only_rollout_of_a_group_has_no_advantage():
    assert group_advantages(torch.tensor([1.0]), torch.tensor([3]), scale=True).tolist() == [0.0]


def test_importance_ratios_of_tokens_and_of_sequences(queue):
    for key, value in (("b_0_0", -0.6), ("a_0_0", -0.3)):
        queue.rows[key]["rollout_log_probs"] = [value] * len(queue.rows[key]["responses"])
    rollouts = read_rollouts(batch_of("b_0_0", "a_0_0"), ())
    # Scored -0.5: gaps of 0.1 at three tokens and -0.2 at two.
    tokens = importance_ratios(rollouts, of_sequences=False)
    assert tokens[RATIO] == pytest.approx((3 * math.exp(0.1) + 2 * math.exp(-0.2)) / 5)
    sequences = importance_ratios(rollouts, of_sequences=True)
    assert sequences[RATIO] == pytest.approx((math.exp(0.3) + math.exp(-0.4)) / 2)
    assert sequences["sampling/importance_sampling_ratio/max"] == pytest.approx(math.exp(0.3))


def test_standard_deviation_by_group():
    values = torch.tensor([1.0, 3.0, 5.0])
    assert group_std(values, torch.tensor([0, 0, 1])).tolist() == [1.0, 0.0]


def test_metrics_that_rewards_log_are_averaged_over_the_rollouts_that_have_them():
    infos = [{"metric/timeouts": 1.0}, {"metric/timeouts": 0.0, "other": 3}, {}]
    assert logged_by_rewards(infos, "metric/") == {"timeouts": 0.5}
