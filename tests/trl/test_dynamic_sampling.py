"""Only groups of mixed accuracy are trained on; the rest is counted, and a batch that never fills is an error."""

import pytest
import torch

from tests.trl.tiny import GROUP, rows_with_pictures
from vgpo.training.dynamic_sampling import PromptStream, SamplingTally, keep_mask
from vgpo.training.settings import DynamicSamplingSettings
from vgpo.trl import DynamicSamplingError, VGPOTrainer


def by_row(kinds):
    """A reward that makes row r all wrong, all right or mixed, as `kinds[r]` says."""

    def reward(row_index, **kwargs):
        seen = dict.fromkeys(row_index, 0)
        values = []
        for row in row_index:
            mixed = float(seen[row] % 2 == 0)
            values.append({"wrong": 0.0, "right": 1.0, "mixed": mixed}[kinds[row % len(kinds)]])
            seen[row] += 1
        return values

    return reward


class Watched(VGPOTrainer):
    def _generation_batch(self, loaded):
        batch = super()._generation_batch(loaded)
        self.batches = [*getattr(self, "batches", []), batch]
        return batch


@pytest.mark.train
def test_mixed_groups_are_kept_and_the_rest_is_counted(make_trainer):
    trainer = make_trainer(
        Watched, reward=by_row(["mixed", "wrong", "right", "mixed"]), dynamic_sampling=True, max_steps=3
    )
    trainer.train()
    for batch in trainer.batches:
        assert len(batch["row_index"]) == 2 * GROUP
        assert set((batch["row_index"] % 4).tolist()) <= {0, 3}
        assert [prompt.num_images for prompt in batch["prompts"]] == [1] * 2 * GROUP
        assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
        assert (batch["advantages"] != 0).all()
        groups = batch["group_ids"].view(-1, GROUP)
        assert (groups == groups[:, :1]).all()
    logged = [line for line in trainer.state.log_history if "sampling/rounds" in line]
    assert len(logged) == 3
    for line in logged:
        assert line["sampling/groups_kept"] == 2
        dropped = line["sampling/groups_too_easy"] + line["sampling/groups_too_hard"] + line["sampling/groups_cut"]
        assert line["sampling/groups_drawn"] == 2 + dropped
    assert sum(line["sampling/rounds"] for line in logged) > 3


@pytest.mark.train
def test_no_group_is_trained_on_twice(make_trainer):
    trainer = make_trainer(Watched, reward=by_row(["mixed", "wrong", "mixed"]), dynamic_sampling=True, max_steps=4)
    trainer.train()
    groups = torch.cat([batch["group_ids"].view(-1, GROUP)[:, 0] for batch in trainer.batches])
    assert len(groups.unique()) == len(groups) == 8


@pytest.mark.train
def test_all_mixed_takes_one_round_and_the_prompts_in_order(make_trainer):
    trainer = make_trainer(
        Watched, reward=by_row(["mixed"]), dynamic_sampling=True, max_steps=4, shuffle_dataset=False
    )
    trainer.train()
    rows = torch.cat([batch["row_index"].view(-1, GROUP)[:, 0] for batch in trainer.batches])
    assert rows.tolist() == list(range(8))
    assert all(line["sampling/rounds"] == 1 for line in trainer.state.log_history if "sampling/rounds" in line)


@pytest.mark.train
@pytest.mark.parametrize(("kind", "accuracy"), [("wrong", "0.00: "), ("right", "1.00: ")])
def test_a_batch_that_never_fills_is_an_error_that_shows_the_accuracies(make_trainer, kind, accuracy):
    trainer = make_trainer(reward=by_row([kind]), dynamic_sampling=True, max_sampling_rounds=3)
    with pytest.raises(DynamicSamplingError, match=rf"After 3 rounds.*0 of 6 groups.*\(0.01, 0.99\).*{accuracy}6"):
        trainer.train()


@pytest.mark.train
def test_works_where_an_old_pass_and_ragged_pictures_have_to_be_joined(make_trainer):
    trainer = make_trainer(
        Watched,
        dataset=rows_with_pictures(12, cells=3),
        reward=by_row(["mixed", "wrong", "right"]),
        dynamic_sampling=True,
        steps_per_generation=2,
        beta=0.0,
        max_steps=4,
    )
    trainer.train()
    assert trainer.state.global_step == 4
    for batch in trainer.batches:
        assert batch["old_per_token_logps"].shape == batch["completion_ids"].shape
        assert batch["similarity"].shape == batch["completion_ids"].shape


@pytest.mark.train
def test_the_filter_reward_can_be_named(make_trainer):
    def other(completions, **kwargs):
        return [0.5] * len(completions)

    trainer = make_trainer(
        Watched, reward=[other, by_row(["mixed", "wrong"])], dynamic_sampling=True, filter_reward="reward"
    )
    trainer.train()
    assert set((trainer.batches[0]["row_index"] % 2).tolist()) == {0}
    with pytest.raises(ValueError, match=r"filter_reward='accuracy' is not one of the reward functions \['other'\]"):
        make_trainer(reward=[other], dynamic_sampling=True, filter_reward="accuracy")


@pytest.mark.train
def test_groups_are_filtered_by_the_accuracy_reward_and_not_by_the_first(make_trainer):
    def other(completions, **kwargs):
        return [0.5] * len(completions)

    accuracy = by_row(["mixed", "wrong"])
    accuracy.__name__ = "my_accuracy"
    trainer = make_trainer(Watched, reward=[other, accuracy], dynamic_sampling=True)
    assert trainer.accuracy_reward == "my_accuracy"
    trainer.train()
    assert set((trainer.batches[0]["row_index"] % 2).tolist()) == {0}


def test_bounds_are_strict_and_unscored_groups_never_pass():
    accuracy = torch.tensor([0.0, 0.01, 0.02, 0.98, 0.99, 1.0, float("nan")])
    assert keep_mask(accuracy, DynamicSamplingSettings()).tolist() == [False, False, True, True, False, False, False]


def test_tally_counts_every_group_once():
    tally = SamplingTally(num_groups=2)
    tally.count(torch.tensor([0.0, 0.5, 0.5, 0.5, 1.0, float("nan")]), DynamicSamplingSettings())
    metrics = tally.metrics()
    assert metrics["sampling/groups_drawn"] == 6
    assert metrics["sampling/groups_too_easy"] == 1
    assert metrics["sampling/groups_too_hard"] == 2  # the unscored one has shown no right answer either
    assert metrics["sampling/groups_cut"] == 1
    assert metrics["sampling/accuracy_drawn"] == 0.5
    assert tally.next_draw(3, most=10) == 6  # half of the groups were kept so far
    assert tally.next_draw(3, most=4) == 4


def test_stream_gives_every_row_once_an_epoch_and_processes_disjoint_shares():
    one = PromptStream(10, seed=3)
    rows = [row for _ in range(6) for row in one.draw(5)]
    for epoch in range(3):
        assert sorted(rows[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert rows[:10] != rows[10:20]
    shares = [PromptStream(10, seed=3).draw(2, process, 2) for process in range(2)]
    assert shares[0] + shares[1] == PromptStream(10, seed=3).draw(4)
