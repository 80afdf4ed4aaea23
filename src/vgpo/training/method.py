"""The method as fields of a configuration: which shaping, with which settings, and what is measured and logged.

Both hosts have these fields: TRL's configuration inherits them, verl's recipe reads them by themselves.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vgpo.equations import VGPOSettings
from vgpo.policy.parts import check_freeze
from vgpo.settings_checks import check_choice, reject_unused
from vgpo.shaping import SHAPINGS, Shaping, build_shaping
from vgpo.training.settings import (
    AlarmSettings,
    DynamicSamplingSettings,
    GuardSettings,
    RolloutLogSettings,
    settings_from,
)


@dataclass
class MethodArguments:
    """The method's settings, dynamic sampling, guards, alarms and the log of rollouts.

    Fields `strength` to `preset` are those of `VGPOSettings`; their defaults and ranges are in it.
    """

    shaping: str = field(
        default="vgpo",
        metadata={"help": "How advantages are shaped: 'vgpo', 'none', or another registered shaping."},
    )
    strength: float = field(
        default=VGPOSettings.strength,
        metadata={"help": "VGPO's beta: strength of the compensation late in a response."},
    )
    tail_ratio: float = field(
        default=VGPOSettings.tail_ratio,
        metadata={"help": "VGPO's gamma: share of a response that is its tail."},
    )
    gate_ratio: float = field(
        default=VGPOSettings.gate_ratio,
        metadata={"help": "VGPO's kappa: share of the tail that is compensated."},
    )
    schedule: str = field(
        default=VGPOSettings.schedule,
        metadata={"help": "Growth over the response: linear, exponential or step."},
    )
    exponent: float = field(default=VGPOSettings.exponent, metadata={"help": "Exponent of the exponential schedule."})
    step: float = field(
        default=VGPOSettings.step,
        metadata={"help": "Where the step schedule rises, as a share of the response."},
    )
    intra: bool = field(default=VGPOSettings.intra, metadata={"help": "Reweight the tokens within a rollout."})
    inter: bool = field(default=VGPOSettings.inter, metadata={"help": "Reweight the rollouts within their group."})
    rollout_score: str = field(
        default=VGPOSettings.rollout_score,
        metadata={"help": "'sum' of a rollout's weights as in the paper, or their 'mean', whatever its length."},
    )
    focus_state: str = field(
        default=VGPOSettings.focus_state,
        metadata={
            "help": "State whose similarity is a token's focus: 'reading' (after it, as in the paper) or 'predicting'."
        },
    )
    preset: str = field(
        default=VGPOSettings.preset,
        metadata={"help": "'paper', or 'released' for the variants of the authors' code."},
    )
    shaping_options: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of a shaping that are not configuration fields, as a mapping."},
    )
    measure_focus: bool = field(
        default=True,
        metadata={"help": "Log visual focus also where the shaping does not use it, as in a baseline."},
    )
    share_prompt: str = field(
        default="auto",
        metadata={
            "help": "Compute a prompt once for all its rollouts: 'auto' where that is exact for the model, 'on' to "
            "insist on it, or 'off'."
        },
    )
    vllm_dtype: str = field(
        default="auto",
        metadata={
            "help": "dtype of a colocated vLLM; 'auto' is that in which the policy computes, also under bf16 or fp16."
        },
    )
    parity: str = field(
        default="auto",
        metadata={
            "help": "Compare scoring, shared prompts, image tokens and focus with plain forward passes before the "
            "first step: 'auto' works around a difference where it can, 'strict' stops at any, 'off' skips it."
        },
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Parts that are not trained: 'vision', 'projector', 'language_model', 'audio', 'generation'; the "
            "head goes with the language model."
        },
    )
    shuffle_groups: bool = field(
        default=True,
        metadata={"help": "Shuffle the groups of a generation batch before it is split into micro-batches."},
    )
    dynamic_sampling: bool = field(
        default=False,
        metadata={"help": "Draw prompts until the batch holds its number of groups of mixed accuracy (DAPO)."},
    )
    accuracy_low: float = field(
        default=DynamicSamplingSettings.accuracy_low,
        metadata={"help": "Dynamic sampling keeps groups whose mean accuracy is above this."},
    )
    accuracy_high: float = field(
        default=DynamicSamplingSettings.accuracy_high,
        metadata={"help": "Dynamic sampling keeps groups whose mean accuracy is below this."},
    )
    max_sampling_rounds: int = field(
        default=DynamicSamplingSettings.max_sampling_rounds,
        metadata={"help": "Rounds of dynamic sampling after which a batch that is not full is an error."},
    )
    filter_reward: str | None = field(
        default=None,
        metadata={
            "help": "Reward function that measures accuracy: dynamic sampling filters by it, and the report counts a "
            "rollout above one half as correct. Default: the first with 'accuracy' in its name, else the first."
        },
    )
    max_skipped_steps: int = field(
        default=GuardSettings.max_skipped_steps,
        metadata={"help": "Steps in a row that may be skipped for a non-finite loss or gradient before a run stops."},
    )
    alarms: str = field(
        default=AlarmSettings.alarms,
        metadata={
            "help": "When a logged figure goes bad: 'warn' and keep the checkpoint from before it, 'stop' with a "
            "checkpoint too, or 'off'. Thresholds are the fields alarm_..., each with 0 to switch it off."
        },
    )
    alarm_lines: int = field(
        default=AlarmSettings.alarm_lines,
        metadata={"help": "Logged lines in a row with a bad figure that make an alarm."},
    )
    alarm_entropy: float = field(
        default=AlarmSettings.alarm_entropy,
        metadata={"help": "Alarm when the policy's entropy (nats per token) is below this."},
    )
    alarm_zero_reward_std: float = field(
        default=AlarmSettings.alarm_zero_reward_std,
        metadata={"help": "Alarm when this share of groups or more have one and the same reward for all rollouts."},
    )
    alarm_truncation: float = field(
        default=AlarmSettings.alarm_truncation,
        metadata={"help": "Alarm when max_completion_length truncates more than this share of rollouts."},
    )
    alarm_length_growth: float = field(
        default=AlarmSettings.alarm_length_growth,
        metadata={"help": "Alarm when responses are more than this many times as long as in the first alarm_lines."},
    )
    alarm_sampling_rounds: int = field(
        default=AlarmSettings.alarm_sampling_rounds,
        metadata={"help": "Alarm when dynamic sampling takes at least this many rounds for a batch."},
    )
    alarm_skipped_steps: int = field(
        default=AlarmSettings.alarm_skipped_steps,
        metadata={"help": "Alarm when this many steps or more had a non-finite loss or gradient since the last line."},
    )
    alarm_kl: float = field(
        default=AlarmSettings.alarm_kl,
        metadata={"help": "Alarm when the divergence from the reference model (nats per token) is above this."},
    )
    alarm_log_prob_gap: float = field(
        default=AlarmSettings.alarm_log_prob_gap,
        metadata={
            "help": "Alarm when log-probabilities of the update differ by more than this (nats per token, mean) from "
            "those that were sampled from."
        },
    )
    alarm_importance_ratio: float = field(
        default=AlarmSettings.alarm_importance_ratio,
        metadata={"help": "Alarm when the mean importance ratio of the policy to vLLM is below this."},
    )
    log_rollouts_steps: int = field(
        default=RolloutLogSettings.log_rollouts_steps,
        metadata={"help": "Write rollouts with their focus every N steps; 0 for never."},
    )
    log_rollouts_groups: int = field(
        default=RolloutLogSettings.log_rollouts_groups, metadata={"help": "Groups that are written each time."}
    )

    def check_method(self) -> None:
        """Check that each setting is in its range and has an effect, before a model is loaded.

        Raises:
            ValueError: one is not, or has none.
        """
        signals = self.build_shaping().signals
        if not self.measure_focus and "similarity" in signals:
            raise ValueError(
                f"measure_focus=False has no effect with shaping={self.shaping!r}, which needs the focus. Remove it."
            )
        check_choice("share_prompt", self.share_prompt, ("auto", "on", "off"))
        check_choice("parity", self.parity, ("auto", "strict", "off"))
        check_freeze(self.freeze)
        for kind in (AlarmSettings, DynamicSamplingSettings, GuardSettings, RolloutLogSettings):
            settings_from(kind, self)
        if not self.dynamic_sampling:
            names = [setting.name for setting in dataclasses.fields(DynamicSamplingSettings)]
            reject_unused(
                self, [*names, "alarm_sampling_rounds"], without="dynamic_sampling", fix="dynamic_sampling=True"
            )

    def build_shaping(self) -> Shaping:
        """The shaping with its settings: fields of this configuration, and `shaping_options` for all others."""
        options = dict(self.shaping_options or {})  # type: ignore[arg-type]  # a string was parsed by the parent
        own = {f.name for f in dataclasses.fields(self)}
        for name in options.keys() & own:
            raise ValueError(f"shaping_options: {name!r} is a separate field; set that.")
        if self.shaping in SHAPINGS:
            shared = own & {f.name for f in dataclasses.fields(SHAPINGS[self.shaping].Settings)}
            self._reject_unused_settings(shared)
            options |= {name: self.__dict__[name] for name in shared}
        return build_shaping(self.shaping, options)

    def _reject_unused_settings(self, used: set[str]) -> None:
        """Method settings that were changed although the shaping has no such setting."""
        for setting in dataclasses.fields(VGPOSettings):
            if setting.name not in used and self.__dict__[setting.name] != setting.default:
                raise ValueError(
                    f"{setting.name}={self.__dict__[setting.name]!r} has no effect with shaping={self.shaping!r}. "
                    "Remove it, or set shaping='vgpo'."
                )


def check_group_size(num_generations: int) -> None:
    """Whether a group has more rollouts than one.

    Raises:
        ValueError: it does not.
    """
    if num_generations < 2:
        raise ValueError(
            f"num_generations={num_generations}: a group needs at least 2 rollouts of a prompt, or no rollout has an "
            "advantage. Set num_generations to 2 or more; 8 is usual."
        )
