"""What vgpo relies on in verl beside the engine (test_engine.py): names, arguments, and the order of a step."""

import inspect

import pytest
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.trainer import main_ppo
from verl.trainer.ppo.v1 import agent_loop_tq, replay_buffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.dataset import rl_dataset
from verl.workers.utils.padding import response_from_nested

from vgpo.verl.metrics import SURPLUS
from vgpo.verl.rollouts import ALWAYS, SAMPLED

ADAPT = "verl has changed; adapt vgpo/verl before this test"
RUNNER = main_ppo.TaskRunnerV1.__ray_actor_class__
ARGUMENTS = {
    PPOTrainer.__init__: ["self", "config"],
    PPOTrainer.fit: ["self", "agent_loop_manager"],
    PPOTrainer._init_tokenizer: ["self"],
    PPOTrainer._compute_old_log_prob: ["self", "batch", "metrics"],
    PPOTrainer._compute_advantage: ["self", "batch", "metrics"],
    PPOTrainer._compute_metrics: ["self", "batch", "metrics", "timing_raw", "global_steps", "epoch"],
    PPOTrainer._save_checkpoint: ["self"],
    PPOTrainer._load_checkpoint: ["self"],
    PPOTrainer._val_metrics_update: [
        "self", "data_sources", "sample_uids", "reward_extra_infos_dict", "sample_turns", "expected_acc_counts",
    ],
    RUNNER.run: ["self", "config"],
    main_ppo.run_ppo: ["config", "task_runner_class"],
    SingleTurnAgentLoop.run: ["self", "sampling_params", "priority", "kwargs"],
    AgentLoopBase.process_multi_modal_info: ["self", "messages"],
    RewardManagerBase.__init__: ["self", "config", "tokenizer", "compute_score"],
    rl_dataset.RLHFDataset.process_multi_modal_info: ["messages", "image_patch_size", "config"],
    response_from_nested: ["tensor", "response_mask"],
}  # fmt: skip


@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda function: function.__qualname__)
def test_functions_that_vgpo_overrides_or_calls_have_these_arguments(function):
    found = [name for name in inspect.signature(function).parameters if not name.startswith("_ray_")]
    assert found == ARGUMENTS[function], ADAPT


def order_of(function, first, *names):
    """Whether the source of a function has these texts in this order, after `first`."""
    source = inspect.getsource(function).partition(first)[2]
    places = [source.find(name) for name in names]
    assert -1 not in places, f"{ADAPT}: {function.__qualname__} no longer has {names[places.index(-1)]}"
    return places == sorted(places)


def test_a_step_computes_log_probs_then_the_reference_then_advantages_then_updates():
    passes = ("_compute_old_log_prob(", "_compute_ref_log_prob(", "_compute_advantage(", "_update_actor(")
    assert order_of(PPOTrainer._step_once, "replay_buffer.sample(", "_balance_batch(", *passes), ADAPT


def test_a_checkpoint_is_saved_and_evaluated_before_metrics_are_logged():
    names = ("_save_checkpoint()", "_validate()", "_compute_metrics(", "logger.log(data=metrics")
    assert order_of(PPOTrainer.fit, "batch = self.step(", *names), ADAPT


def test_an_update_starts_from_advantages_in_the_queue_and_not_from_the_batch():
    source = inspect.getsource(PPOTrainer._compute_advantage)
    assert 'fields = ["advantages", "returns"]' in source, ADAPT
    assert "tq.kv_batch_put(keys=batch.keys" in source, ADAPT


def test_fields_that_the_driver_reads_are_those_that_verl_writes():
    written = inspect.getsource(agent_loop_tq) + inspect.getsource(AgentLoopOutput) + inspect.getsource(PPOTrainer)
    of_our_data_set = {"num_images"}
    assert [name for name in {*ALWAYS, SAMPLED} - of_our_data_set if name not in written] == []


def test_counts_of_the_group_filter_have_their_names():
    assert replay_buffer.DAPO_FILTERED_REWARD_COUNTS_KEY == "_dapo_filtered_reward_counts", ADAPT
    source = inspect.getsource(replay_buffer.ReplayBuffer)
    assert SURPLUS.removeprefix("training/") in source, ADAPT
    assert 'tag.get("is_padding"' in inspect.getsource(PPOTrainer), ADAPT
