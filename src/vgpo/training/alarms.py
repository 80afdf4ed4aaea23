"""Alarms on logged metrics: reported early, with advice and with a checkpoint to go back to."""

import logging
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vgpo.checkpoints import CheckpointError, CheckpointStore
from vgpo.metric_names import (
    GUARD_SKIPPED_STEPS,
    SAMPLING_IMPORTANCE_RATIO,
    SAMPLING_LOG_PROB_GAP,
    SAMPLING_ROUNDS,
)
from vgpo.training.settings import AlarmSettings

logger = logging.getLogger(__name__)


class AlarmError(RuntimeError):
    """An alarm was raised in a run that stops on alarms; the message says which, with values and advice."""


@dataclass
class RuleState:
    """The state of a rule: its first values, the last one, and the current bad values in a row, with the first step.

    A checkpoint holds it as a dictionary, so that a resumed run raises the same alarms.
    """

    first: list[float] = field(default_factory=list)
    last: float = 0.0
    bad: list[float] = field(default_factory=list)
    since: int = 0


def identity(value: float, state: RuleState) -> float:
    return value


def growth(value: float, state: RuleState) -> float:
    """The value as a multiple of the mean of the first ones."""
    return value / max(sum(state.first) / len(state.first), 1.0)


def increase(value: float, state: RuleState) -> float:
    """The difference from the last value."""
    return value - state.last


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A metric that is bad on one side of a threshold; an alarm when it is, several lines in a row.

    name: of the logged metric `alarm/<name>`. metric: the logged metric. threshold: the field of `AlarmSettings`, 0 to
    disable the rule. is_bad: of value and threshold. measure: what is compared, computed from the metric. patience:
    how many lines in a row; None for `alarm_lines`. text: what the value is and which side is bad. advice: what to do.
    """

    name: str
    metric: str
    threshold: str
    is_bad: Callable[[float, float], bool]
    measure: Callable[[float, RuleState], float] = identity
    patience: int | None = None
    text: str
    advice: str


RULES = (
    Rule(
        name="entropy_collapse",
        metric="entropy",
        threshold="alarm_entropy",
        is_bad=operator.lt,
        text="the policy's entropy (nats per token) is below",
        advice="It samples the same answer again and again and finds no better one. Raise epsilon_high or "
        "temperature, lower learning_rate, or add entropy_coef.",
    ),
    Rule(
        name="zero_reward_std",
        metric="frac_reward_zero_std",
        threshold="alarm_zero_reward_std",
        is_bad=operator.ge,
        text="the share of groups whose rollouts all have the same reward has reached",
        advice="Such groups have no advantage, and the policy learns nothing from them. Read some rollouts: either "
        "the reward does not distinguish answers (try `vgpo reward test`), or all questions are too hard or too easy; "
        "dynamic_sampling leaves such groups out.",
    ),
    Rule(
        name="truncation",
        metric="completions/clipped_ratio",
        threshold="alarm_truncation",
        is_bad=operator.gt,
        text="the share of rollouts that max_completion_length truncates is above",
        advice="A truncated response is graded without its answer. Raise max_completion_length, set "
        "mask_truncated_completions, or ask for shorter answers in the template.",
    ),
    Rule(
        name="length_explosion",
        metric="completions/mean_length",
        threshold="alarm_length_growth",
        is_bad=operator.gt,
        measure=growth,
        text="mean response length, as a multiple of what it was at the start, is above",
        advice="Read some rollouts: if they repeat themselves, lower learning_rate, or add a reward that asks for an "
        "end. If they reason longer and the reward rises, raise this limit.",
    ),
    Rule(
        name="sampling_rounds",
        metric=SAMPLING_ROUNDS,
        threshold="alarm_sampling_rounds",
        is_bad=operator.ge,
        text="the rounds that dynamic sampling takes to fill a batch have reached",
        advice="Hardly any group has mixed answers; at max_sampling_rounds the run ends. Take out questions that are "
        "always or never solved, raise num_generations, or look whether the reward can read the answers.",
    ),
    Rule(
        name="not_finite",
        metric=GUARD_SKIPPED_STEPS,
        threshold="alarm_skipped_steps",
        is_bad=operator.ge,
        measure=increase,
        patience=1,
        text="the steps skipped since the last logged line, for a loss or gradient that is not finite, have reached",
        advice="Weights are as before these steps. Lower learning_rate or max_grad_norm, look at the rewards of the "
        "last rollouts, and prefer bf16 to fp16.",
    ),
    Rule(
        name="kl_explosion",
        metric="kl",
        threshold="alarm_kl",
        is_bad=operator.gt,
        text="the divergence from the reference model (nats per token) is above",
        advice="The policy is leaving the reference model. Lower learning_rate or raise beta.",
    ),
    Rule(
        name="log_prob_gap",
        metric=SAMPLING_LOG_PROB_GAP,
        threshold="alarm_log_prob_gap",
        is_bad=operator.gt,
        text="the mean difference (nats per token) of log-probabilities between update and sampling is above",
        advice="Importance ratios and the clipping of the loss are wrong by as much. Set share_prompt to off, then "
        "attn_implementation to eager or bf16 to false, and see which removes it; set lora_dropout to 0.",
    ),
    Rule(
        name="importance_ratio",
        metric=SAMPLING_IMPORTANCE_RATIO,
        threshold="alarm_importance_ratio",
        is_bad=operator.lt,
        text="the mean importance ratio of the policy to vLLM, which sampled, is below",
        advice="Rollouts weigh too little, or are masked: vLLM does not compute what the policy computes. Compare "
        "vllm_dtype and dtype, and look at sampling/log_prob_gap; `vgpo doctor` looks at a server and at "
        "top_p, top_k and min_p, with which ratios of complete responses fall with their length.",
    ),
)


class Alarms:
    """Evaluates alarm rules on logged metrics; deterministic, so all ranks agree.

    Args:
        settings: thresholds, and what an alarm does.
        is_main_process: whether this process reports alarms and pins checkpoints.

    Attributes:
        stopping: the messages of alarms that end the run.
    """

    def __init__(self, settings: AlarmSettings, *, is_main_process: bool = True) -> None:
        self.settings = settings
        self.is_main_process = is_main_process
        self.rules = [rule for rule in RULES if settings.alarms != "off" and self._threshold(rule)]
        self.states = {rule.name: RuleState() for rule in self.rules}
        self.stopping: list[str] = []

    def update(
        self, step: int, logs: Mapping[str, float], checkpoints: CheckpointStore, *, suspect: int | None = None
    ) -> list[str]:
        """Evaluate a logged line, and return the names of the alarms that are active now.

        An alarm is reported once, when it is raised, and then the newest checkpoint from before it is pinned.

        Args:
            step: of the line.
            logs: metrics by name; that of a rule may be missing, or not a number.
            checkpoints: of the run.
            suspect: checkpoints of this step and later ones are not pinned. Default: that of the line.

        Raises:
            CheckpointError: a checkpoint could not be pinned.
        """
        active = []
        for rule in self.rules:
            state, value = self.states[rule.name], float(logs.get(rule.metric, math.nan))
            if math.isnan(value):
                continue
            was_active = len(state.bad) >= self._patience(rule)
            self._update_rule(rule, state, step, value)
            if len(state.bad) < self._patience(rule):
                continue
            active.append(rule.name)
            if not was_active:
                self._trigger(rule, state, step, checkpoints, step if suspect is None else suspect)
        return active

    def _update_rule(self, rule: Rule, state: RuleState, step: int, value: float) -> None:
        patience = self._patience(rule)
        if len(state.first) < patience:
            state.first.append(value)
        measured, state.last = rule.measure(value, state), value
        if not rule.is_bad(measured, self._threshold(rule)):
            state.bad.clear()
            return
        state.since = state.since if state.bad else step
        state.bad = [*state.bad, measured][-patience:]

    def _trigger(self, rule: Rule, state: RuleState, step: int, checkpoints: CheckpointStore, suspect: int) -> None:
        low, high = min(state.bad), max(state.bad)
        found = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        message = (
            f"Alarm {rule.name} at step {step}: {rule.text} {rule.threshold}={self._threshold(rule):g}; found {found} "
            f"in {len(state.bad)} logged line(s), since step {state.since}. {rule.advice}"
        )
        if self.is_main_process:
            message += f" {self._keep_checkpoint(rule, state.since, step, checkpoints, suspect)}"
            logger.warning("%s", message)
        if self.settings.alarms == "stop":
            self.stopping.append(message)

    @staticmethod
    def _keep_checkpoint(rule: Rule, since: int, now: int, checkpoints: CheckpointStore, suspect: int) -> str:
        """Pin the newest complete checkpoint from before the first bad line, else the oldest; say which it is."""
        try:
            steps = checkpoints.complete_steps(before=suspect)
            if not steps:
                return "There is no earlier checkpoint to go back to; set save_steps to have some."
            kept = next((step for step in steps if step < since), steps[-1])
            checkpoints.pin(kept, f"{rule.name}: alarm at step {now}, bad since step {since}")
        except (CheckpointError, OSError) as error:  # it must not take the place of the alarm
            return f"The checkpoint to go back to could not be kept from deletion: {error}"
        which = "is from before it" if kept < since else "is the oldest there is"
        return (
            f"{checkpoints.path(kept)} {which} and is never deleted; to go back to it, move newer ones away and "
            "resume."
        )

    def _threshold(self, rule: Rule) -> float:
        return getattr(self.settings, rule.threshold)

    def _patience(self, rule: Rule) -> int:
        return rule.patience or self.settings.alarm_lines

    def state(self) -> dict[str, Any]:
        """What was seen so far, for a checkpoint."""
        return {name: asdict(state) for name, state in self.states.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; a rule that was disabled starts fresh, a disabled one is left out."""
        self.states |= {name: RuleState(**seen) for name, seen in state.items() if name in self.states}
