"""Wrong settings are refused before a model is loaded, with the sizes or the option that would work."""

import pytest

from vgpo import VGPOSettings
from vgpo.shaping.adaptive import AdaptiveSettings
from vgpo.trl import VGPOConfig


def config(tmp_path, **settings):
    defaults = {
        "per_device_train_batch_size": 8,
        "num_generations": 8,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
    }
    return VGPOConfig(output_dir=str(tmp_path), **(defaults | settings))


def test_method_fields_reach_the_shaping(tmp_path):
    shaping = config(tmp_path, strength=0.7, tail_ratio=0.4, schedule="exponential", exponent=3.0).build_shaping()
    assert shaping.settings == VGPOSettings(strength=0.7, tail_ratio=0.4, schedule="exponential", exponent=3.0)


def test_fields_and_options_reach_the_adaptive_shaping(tmp_path):
    options = {"forgetting": "curve", "correlation_rate": 0.2, "full_correlation": 0.3, "full_slope": 0.4,
               "stratum_column": "source"}  # fmt: skip
    shaping = config(
        tmp_path,
        shaping="adaptive",
        strength=0.7,
        tail_ratio=0.4,
        gate_ratio=0.1,
        intra=False,
        shaping_options=options,
    ).build_shaping()
    assert shaping.settings == AdaptiveSettings(strength=0.7, tail_ratio=0.4, gate_ratio=0.1, intra=False, **options)
    assert config(tmp_path, shaping="adaptive").build_shaping().settings == AdaptiveSettings()


def test_defaults_are_those_of_the_settings(tmp_path):
    assert config(tmp_path).build_shaping().settings == VGPOSettings()


def test_the_accuracy_reward_can_be_named_without_dynamic_sampling(tmp_path):
    assert config(tmp_path, filter_reward="score").filter_reward == "score"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, r"num_generations=1: a group needs at least 2 rollouts.*8 is usual"),
        ({"strength": -1.0}, "strength"),
        ({"exponent": 3.0}, "exponent"),
        ({"shaping": "none", "strength": 0.5}, r"strength=0.5 has no effect with shaping='none'"),
        ({"shaping": "vpgo"}, "did you mean 'vgpo'"),
        ({"shaping_options": {"strength": 0.5}}, r"'strength' is a separate field"),
        ({"shaping_options": {"alpha": 0.5}}, r"no option 'alpha'"),
        ({"shaping": "adaptive", "schedule": "step"}, r"schedule='step' has no effect with shaping='adaptive'"),
        (
            {"shaping": "adaptive", "rollout_score": "mean"},
            "rollout_score='mean' has no effect",
        ),
        ({"shaping": "adaptive", "shaping_options": {"strength": 0.1}}, r"'strength' is a separate field"),
        (
            {"shaping": "adaptive", "shaping_options": {"earnt": True}},
            "no option 'earnt'",
        ),
        (
            {"shaping": "adaptive", "shaping_options": {"earned": False, "correlation_rate": 0.2}},
            "correlation_rate=0.2 has no effect with earned=False",
        ),
        ({"measure_focus": False}, "measure_focus=False has no effect with shaping='vgpo', which needs the focus"),
        ({"save_total_limit": 0}, "save_total_limit=0, expected 1 or more, or None to keep every checkpoint"),
        (
            {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"},
            "load_best_model_at_end=True is not supported.*`vgpo eval`",
        ),
        ({"max_skipped_steps": 0}, "max_skipped_steps is 0, expected a number >= 1"),
        ({"accuracy_low": 0.2}, r"accuracy_low=0.2 has no effect without dynamic_sampling"),
        ({"max_sampling_rounds": 0}, "max_sampling_rounds is 0, expected a number >= 1"),
        ({"dynamic_sampling": True, "accuracy_low": 0.9, "accuracy_high": 0.1}, "accuracy_low=0.9"),
        ({"dynamic_sampling": True, "scale_rewards": "batch"}, "normalised within a group.*'group' or 'none'"),
        (
            {"dynamic_sampling": True, "multi_objective_aggregation": "normalize_then_sum"},
            "multi_objective_aggregation",
        ),
        ({"per_device_train_batch_size": 6}, r"6 rollouts.*num_generations=8.*to a multiple of 8 \(8, 16"),
    ],
    ids=str,
)
def test_wrong_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)
