"""verl's metrics under the names of TRL's runs."""

import pytest

from vgpo.verl.metrics import filter_metrics, trl_metrics


def test_times_are_those_of_an_optimizer_step():
    timing = {"gen": 8.0, "old_log_prob": 1.0, "ref": 1.0, "update_actor": 4.0, "step": 16.0}
    metrics = trl_metrics({}, timing, updates=4)
    assert metrics == {"time/generation": 2.0, "time/scoring": 0.5, "time/update": 1.0, "step_time": 4.0}


def test_loss_gradient_and_rate_have_the_names_of_trl():
    logged = {"actor/pg_loss": 0.5, "actor/loss": 0.7, "actor/grad_norm": 2, "actor/lr": 1e-6, "other": "text"}
    assert trl_metrics(logged, {}, 1) == {"loss": 0.7, "policy_loss": 0.5, "grad_norm": 2.0, "learning_rate": 1e-6}


def test_dynamic_sampling_counts_what_was_dropped():
    # Two groups of four are kept with 5 right answers of 8; one was always right, two never.
    metrics = filter_metrics({1.0: 1, 0.0: 2}, surplus=1, accuracies=[1, 1, 1, 0, 1, 1, 0, 0], group_size=4)
    assert metrics["sampling/groups_kept"] == 2
    assert metrics["sampling/groups_drawn"] == 6
    assert metrics["sampling/groups_too_easy"] == 1
    assert metrics["sampling/groups_too_hard"] == 2
    assert metrics["sampling/groups_cut"] == 1
    assert metrics["sampling/accuracy_drawn"] == pytest.approx((5 + 4) / 20)
