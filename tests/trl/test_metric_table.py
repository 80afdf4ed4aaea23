"""The table of metrics holds what is logged, all of it and nothing else, and a name is written once."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import vgpo
from tests.trl.tiny import GROUP, coin
from vgpo import metric_names
from vgpo.metric_names import ALARM_PREFIX, RENAMED
from vgpo.rewards import accuracy_reward
from vgpo.shaping import SHAPINGS
from vgpo.training.metric_table import METRICS
from vgpo.trl import VGPOTrainer

TABLE = {metric.name: metric for metrics in METRICS.values() for metric in metrics}
PREFIXES = {f"{name.partition('/')[0]}/" for name in TABLE}
OF_TRL = {
    "loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens", "reward", "reward_std",
    "frac_reward_zero_std", "entropy", "step_time",
}  # fmt: skip
OF_AN_ENGINE = metric_names.SAMPLING_IMPORTANCE_RATIO  # tests/vllm has one
OF_VERL = metric_names.SAMPLING_FAILED_ROLLOUTS  # tests/verl has it
OF_A_BLIND_GATE = metric_names.ADAPTIVE_TEXT_ONLY_ACCURACY
OF_BENCHMARKS = "eval_suite/"
PREFIXES_OF_TRL = ("completions/", "rewards/", "clip_ratio/")


def test_a_name_is_in_the_table_once() -> None:
    assert len(TABLE) == sum(map(len, METRICS.values()))
    constants = {value for value in vars(metric_names).values() if isinstance(value, str) and value[-1:] != "/"}
    assert {name for name in constants if name.startswith(tuple(PREFIXES))} <= TABLE.keys()


def test_old_names_are_those_of_no_metric_and_new_ones_are() -> None:
    assert not RENAMED.keys() & TABLE.keys()
    assert set(RENAMED.values()) <= TABLE.keys()


def test_shapings_in_the_table_are_registered() -> None:
    assert {shaping for metric in TABLE.values() for shaping in metric.shapings} <= SHAPINGS.keys()


def test_a_name_is_written_in_one_module() -> None:
    root = Path(vgpo.__file__).parent
    found = [
        f"{path.relative_to(root)}, line {node.lineno}: {node.value!r}"
        for path in sorted(root.rglob("*.py"))
        if path.name != "metric_names.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(tuple(PREFIXES))
    ]
    assert not found, f"write a constant of vgpo.metric_names in place of {found}"


@pytest.mark.train
@pytest.mark.parametrize("shaping", SHAPINGS)
def test_what_a_run_logs_is_in_the_table(make_trainer: Callable[..., VGPOTrainer], shaping: str) -> None:
    trainer = make_trainer(
        shaping=shaping,
        reward=[coin, accuracy_reward],  # the second one logs time-outs
        dynamic_sampling=True,
        filter_reward="coin",
        per_device_train_batch_size=GROUP,
        steps_per_generation=2,  # so that every shaping takes a scoring pass
        alarm_lines=1,  # the untrained model never ends a response
    )
    trainer.train()
    logged = {name for line in trainer.state.log_history if "loss" in line for name in line}
    of_vgpo = {name for name in logged - OF_TRL if not name.startswith(PREFIXES_OF_TRL)}
    # Other alarms are not active; tests/trl/test_alarms.py raises every one.
    assert of_vgpo == {"alarm/truncation"} | {
        name
        for name, metric in TABLE.items()
        if not name.startswith((ALARM_PREFIX, OF_AN_ENGINE, OF_VERL, OF_A_BLIND_GATE, OF_BENCHMARKS))
        and (not metric.shapings or shaping in metric.shapings)
    }
