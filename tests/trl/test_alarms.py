"""Alarms are reported once, with advice, and the checkpoint from before them is kept."""

import logging
import shutil

import pytest

from tests.trl.tiny import coin
from vgpo.checkpoints import CheckpointError, CheckpointStore, load_state, save_state
from vgpo.recipe.train import ERRORS
from vgpo.report.training import RunCallback
from vgpo.run import RunFolder
from vgpo.training.alarms import RULES, Alarms
from vgpo.training.settings import AlarmSettings
from vgpo.trl import AlarmError, VGPOConfig, VGPOTrainer

LINES = 3
# Of each rule: a metric, values that are bad by default, one that is not, and what the message says was found.
BAD = {
    "entropy_collapse": ("entropy", (0.009, 0.008, 0.0021), 0.01, "below alarm_entropy=0.01; found 0.0021 to 0.009"),
    "zero_reward_std": ("frac_reward_zero_std", (1.0, 1.0, 1.0), 0.99, "reached alarm_zero_reward_std=1; found 1 in"),
    "truncation": ("completions/clipped_ratio", (0.6, 0.9, 1.0), 0.5, "above alarm_truncation=0.5; found 0.6 to 1"),
    "length_explosion": (
        "completions/mean_length", (450.0, 500.0, 900.0), 400.0, "above alarm_length_growth=4; found 4.5 to 9 in",
    ),
    "sampling_rounds": ("sampling/rounds", (7, 8, 10), 6, "reached alarm_sampling_rounds=7; found 7 to 10 in"),
    "kl_explosion": ("kl", (1.5, float("inf"), 2.0), 1.0, "above alarm_kl=1; found 1.5 to inf in"),
    "importance_ratio": (
        "sampling/importance_sampling_ratio/mean", (0.4, 0.2, 0.3), 0.99,
        "below alarm_importance_ratio=0.5; found 0.2 to 0.4 in",
    ),
    "log_prob_gap": (
        "sampling/log_prob_gap", (0.3, 0.25, 2.9), 0.05, "above alarm_log_prob_gap=0.2; found 0.25 to 2.9 in",
    ),
}  # fmt: skip
# Lowest and highest of the 160 lines that both recipes of `vgpo quickstart` logged (seed 0), and beyond.
HEALTHY = {
    "entropy": (0.05, 0.15),
    "frac_reward_zero_std": (0.0, 0.7),
    "completions/clipped_ratio": (0.0, 0.005),
    "completions/mean_length": (16.4, 27.0),
    "sampling/rounds": (1, 5),
    "guard/skipped_steps": (0.0, 0.0),
    "kl": (0.0, 0.3),
    "sampling/log_prob_gap": (0.0, 1e-4),
    "sampling/importance_sampling_ratio/mean": (0.9, 1.1),
}


@pytest.fixture
def config(tmp_path):
    def make(**settings):
        defaults = {"alarm_lines": LINES, "dynamic_sampling": True, "beta": 0.01}
        return VGPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], num_generations=4,
            per_device_train_batch_size=4, **{**defaults, **settings},
        )  # fmt: skip

    return make


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def save(store, *steps):
    for step in steps:
        (store.begin(step) / "weights").write_text("w")
        store.commit(step)


def hear(alarms, store, metric, values, first_step=1):
    """The alarms that hold at each line."""
    return [alarms.update(step, {metric: value}, store) for step, value in enumerate(values, start=first_step)]


@pytest.mark.parametrize("name", BAD)
def test_an_alarm_goes_off_after_so_many_bad_lines_and_once(config, store, caplog, name):
    metric, bad, good, found = BAD[name]
    start = [100.0] * LINES if name == "length_explosion" else []
    alarms = Alarms(AlarmSettings(alarm_lines=LINES))
    assert hear(alarms, store, metric, [*start, *bad, bad[-1], good]) == [
        *[[] for _ in start],
        [],
        [],
        [name],
        [name],
        [],
    ]
    told = [record.getMessage() for record in caplog.records]
    rule = next(rule for rule in RULES if rule.name == name)
    first = len(start) + 1
    assert len(told) == 1
    assert told[0].startswith(f"Alarm {name} at step {first + 2}: {rule.text} ")
    assert found in told[0]
    assert f"3 logged line(s), since step {first}. {rule.advice}" in told[0]
    hear(alarms, store, metric, bad, first_step=20)
    assert len(caplog.records) == 2  # another episode


def test_steps_that_were_skipped_are_told_at_once(config, store, caplog):
    alarms = Alarms(AlarmSettings(alarm_lines=LINES))
    held = hear(alarms, store, "guard/skipped_steps", [0, 0, 2, 2, 3])
    assert held == [[], [], ["not_finite"], [], ["not_finite"]]
    assert "have reached alarm_skipped_steps=1; found 2 in 1 logged line(s), since step 3. Weights" in caplog.text


def test_a_healthy_run_is_silent(config, store, caplog):
    alarms = Alarms(AlarmSettings(alarm_lines=1))
    lines = [{name: ends[i // 2 % 2] for name, ends in HEALTHY.items()} for i in range(80)]
    assert {rule.metric for rule in RULES} == HEALTHY.keys()
    assert not any(alarms.update(step, line, store) for step, line in enumerate(lines))
    assert not caplog.records


def test_lines_without_the_figure_neither_count_nor_end_a_row(config, store):
    alarms = Alarms(AlarmSettings(alarm_lines=LINES))
    values = [1.0, float("nan"), 1.0, float("nan"), 1.0]
    assert hear(alarms, store, "frac_reward_zero_std", values)[-1] == ["zero_reward_std"]
    alarms.update(6, {"train_runtime": 1.0}, store)
    assert alarms.update(7, {"frac_reward_zero_std": 1.0}, store) == ["zero_reward_std"]


@pytest.mark.parametrize("settings", [{"alarms": "off", "alarm_lines": 10}, {"alarm_entropy": 0}], ids=str)
def test_an_alarm_can_be_switched_off(config, store, settings):
    assert not any(hear(Alarms(AlarmSettings(**{"alarm_lines": LINES, **settings})), store, "entropy", [0.0] * 20))


def test_the_newest_checkpoint_from_before_the_bad_lines_is_kept(config, store, caplog):
    save(store, 4, 8)
    hear(Alarms(AlarmSettings(alarm_lines=LINES)), store, "entropy", [0.5, 0.0, 0.0, 0.0], first_step=7)
    assert store.pins() == {4: "entropy_collapse: alarm at step 10, bad since step 8"}
    assert f"{store.path(4)} is from before it and is never deleted; to go back" in caplog.text
    save(store, 12, 16, 20)
    assert store.steps() == [20, 16, 4]


def test_a_checkpoint_that_cannot_be_pinned_does_not_hide_the_alarm(config, store, caplog, monkeypatch):
    def refuse(*args):
        raise CheckpointError("No space left on device. Free space and resume.")

    save(store, 4)
    monkeypatch.setattr(CheckpointStore, "pin", refuse)
    alarms = Alarms(AlarmSettings(alarm_lines=LINES, alarms="stop"))
    assert hear(alarms, store, "entropy", [0.5, 0.0, 0.0, 0.0], first_step=7)[-1] == ["entropy_collapse"]
    assert "Alarm entropy_collapse at step 10" in caplog.text
    assert "could not be kept from deletion: No space left on device" in caplog.text
    assert len(alarms.stopping) == 1


def test_a_checkpoint_of_a_suspect_update_is_not_pinned(config, store, caplog):
    save(store, 3, 4, 5)
    Alarms(AlarmSettings(alarm_lines=LINES)).update(6, {"guard/skipped_steps": 1}, store, suspect=5)
    assert store.pins().keys() == {4}
    save(store, 9)
    Alarms(AlarmSettings(alarm_lines=LINES)).update(20, {"guard/skipped_steps": 1}, store, suspect=4)
    assert "There is no earlier checkpoint to go back to" in caplog.text


def test_a_broken_checkpoint_is_none_to_go_back_to(config, store):
    save(store, 3, 4)
    (store.path(4) / "weights").unlink()
    hear(Alarms(AlarmSettings(alarm_lines=LINES)), store, "entropy", [0.0, 0.0, 0.0], first_step=7)
    assert store.pins().keys() == {3}


def test_without_one_from_before_the_oldest_is_kept(config, store, caplog):
    save(store, 8, 9)
    hear(Alarms(AlarmSettings(alarm_lines=LINES)), store, "entropy", [0.0, 0.0, 0.0], first_step=8)
    assert store.pins().keys() == {8}
    assert f"{store.path(8)} is the oldest there is and is never deleted" in caplog.text


def test_without_any_checkpoint_that_is_said(config, store, caplog):
    hear(Alarms(AlarmSettings(alarm_lines=LINES)), store, "entropy", [0.0] * LINES)
    assert "There is no earlier checkpoint to go back to; set save_steps" in caplog.text


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_run_that_is_resumed_hears_the_same_alarms(config, store, tmp_path, cut):
    """Through the files of a checkpoint, wherever the run is cut."""
    metrics = {"completions/mean_length": [10, 12, 11, 90, 95, 99, 80, 9], "entropy": [0.5, *[0.001] * 7]}
    lines = [dict(zip(metrics, values, strict=True)) for values in zip(*metrics.values(), strict=True)]
    whole = Alarms(AlarmSettings(alarm_lines=LINES))
    held = [whole.update(step, line, store) for step, line in enumerate(lines)]
    assert {name for names in held for name in names} == {"length_explosion", "entropy_collapse"}
    before, after = Alarms(AlarmSettings(alarm_lines=LINES)), Alarms(AlarmSettings(alarm_lines=LINES))
    heard = [before.update(step, line, store) for step, line in enumerate(lines[:cut])]
    save_state(tmp_path, "alarms", before.state())
    after.load_state(load_state(tmp_path, "alarms"))
    heard += [after.update(step, line, store) for step, line in enumerate(lines[cut:], start=cut)]
    assert heard == held
    assert after.state() == whole.state()


def alike(completion_ids, **kwargs):
    return [1.0] * len(completion_ids)


SAVING = {"save_strategy": "steps", "save_steps": 1, "alarm_lines": LINES, "alarm_truncation": 0, "max_steps": 6}


@pytest.mark.train
def test_a_run_logs_its_alarms_and_keeps_the_checkpoint(make_trainer, tmp_path, caplog):
    folder = RunFolder.create(tmp_path / "folder", {}, seed=0, command=[])
    trainer = make_trainer(
        reward=alike, trainer_kwargs={"callbacks": [RunCallback(folder)]}, save_total_limit=1, **SAVING
    )
    trainer.train()
    assert [line.get("alarm/zero_reward_std") for line in folder.read_metrics()[:6]] == [None, None, 1, 1, 1, 1]
    assert caplog.text.count("Alarm zero_reward_std at step 3") == caplog.text.count("Alarm ") == 1
    assert trainer.checkpoints.steps() == [6, 5, 1]


@pytest.mark.train
def test_a_run_can_stop_at_an_alarm_and_go_on(make_trainer):
    settings = {**SAVING, "save_strategy": "no", "alarms": "stop"}
    trainer = make_trainer(reward=alike, **settings)
    with pytest.raises(AlarmError, match=r"Alarm zero_reward_std at step 3: .* found 1 in 3 logged.*vgpo reward test"):
        trainer.train()
    assert AlarmError in ERRORS
    assert trainer.checkpoints.newest_valid().step == 3
    again = make_trainer(reward=alike, **settings)
    again.train(resume_from_checkpoint=True)  # the alarm was raised before
    assert again.state.global_step == 6
    assert again.state.log_history[3]["alarm/zero_reward_std"] == 1


@pytest.mark.train
def test_a_resumed_run_goes_on_counting(make_trainer):
    trainer = make_trainer(reward=alike, **SAVING)
    trainer.train()
    for step in range(3, 7):
        shutil.rmtree(trainer.checkpoints.path(step))
    resumed = make_trainer(reward=alike, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    alarms = [line.get("alarm/zero_reward_std") for line in resumed.state.log_history[:6]]
    assert alarms == [None, None, 1, 1, 1, 1]


class Poisoned(VGPOTrainer):
    def _compute_loss(self, model, inputs):
        return super()._compute_loss(model, inputs) * (float("nan") if self.state.global_step == 1 else 1.0)


@pytest.mark.train
def test_a_skipped_step_is_an_alarm(make_trainer, caplog):
    trainer = make_trainer(Poisoned, reward=coin, max_steps=3)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert [line.get("alarm/not_finite") for line in trainer.state.log_history[:3]] == [None, 1, None]
    assert "Alarm not_finite at step 2: the steps skipped" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alarms": "loud"}, "alarms is 'loud', expected one of 'warn', 'stop', 'off'"),
        ({"alarm_lines": 0}, "alarm_lines is 0, expected a number >= 1"),
        ({"alarm_entropy": -0.1}, "alarm_entropy=-0.1, expected 0 or more; 0 disables this alarm"),
        ({"alarm_kl": float("nan")}, "alarm_kl=nan, expected 0 or more"),
        ({"alarm_zero_reward_std": 1.1}, "alarm_zero_reward_std=1.1, expected 0 to 1; 0 disables"),
        ({"alarm_truncation": 2}, "alarm_truncation=2, expected 0 to 1"),
        ({"alarm_length_growth": 0.5}, "alarm_length_growth=0.5, expected above 1, or 0 for no alarm"),
        ({"alarms": "off", "alarm_lines": 10, "alarm_kl": 2.0}, "alarm_kl=2.0 has no effect without alarms"),
        ({"beta": 0.0, "alarm_kl": 2.0}, "alarm_kl=2.0 has no effect without a reference model.*beta above 0"),
        ({"dynamic_sampling": False, "alarm_sampling_rounds": 3}, "alarm_sampling_rounds=3 has no effect without dyn"),
    ],
    ids=str,
)
def test_wrong_settings(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)
