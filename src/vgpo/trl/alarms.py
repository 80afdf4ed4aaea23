"""Alarms: logged figures that went bad, told early, with advice and with a checkpoint to go back to."""

import logging
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vgpo.checkpoints import CheckpointStore
from vgpo.trl.config import VGPOConfig

logger = logging.getLogger(__name__)

PREFIX = "alarm/"


class AlarmError(RuntimeError):
    """An alarm went off in a run that is to stop then; the message says which, with figures and advice."""


@dataclass
class Watch:
    """What a rule has seen: its first values, the last one, and the bad figures in a row, with the step of the first.

    A checkpoint holds it as a dictionary, so that a resumed run hears the same alarms.
    """

    first: list[float] = field(default_factory=list)
    last: float = 0.0
    bad: list[float] = field(default_factory=list)
    since: int = 0


def itself(value: float, watch: Watch) -> float:
    return value


def growth(value: float, watch: Watch) -> float:
    """The value as a multiple of the mean of the first ones."""
    return value / max(sum(watch.first) / len(watch.first), 1.0)


def increase(value: float, watch: Watch) -> float:
    """What has come on top of the last value."""
    return value - watch.last


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A figure that is bad on one side of a threshold; an alarm when it is, several times in a row.

    name: of the logged metric `alarm/<name>`. metric: the logged figure. threshold: the field of `VGPOConfig`, 0 to
    switch the rule off. is_bad: of figure and threshold. figure: what is compared, made of the metric. lines: how many
    times in a row; None for `alarm_lines`. text: what the figure is and what side is bad. advice: what to do.
    """

    name: str
    metric: str
    threshold: str
    is_bad: Callable[[float, float], bool]
    figure: Callable[[float, Watch], float] = itself
    lines: int | None = None
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
        name="groups_alike",
        metric="frac_reward_zero_std",
        threshold="alarm_groups_alike",
        is_bad=operator.ge,
        text="the share of groups whose rollouts all have the same reward has reached",
        advice="Such groups have no advantage, and nothing is learnt. Read some rollouts: either the reward cannot "
        "tell answers apart (try `vgpo reward test`), or the questions are all too hard or too easy; "
        "dynamic_sampling leaves such groups out.",
    ),
    Rule(
        name="answers_cut",
        metric="completions/clipped_ratio",
        threshold="alarm_answers_cut",
        is_bad=operator.gt,
        text="the share of rollouts that max_completion_length cuts off is above",
        advice="What is cut off is graded without its answer. Raise max_completion_length, set "
        "mask_truncated_completions, or ask for shorter answers in the template.",
    ),
    Rule(
        name="length_explosion",
        metric="completions/mean_length",
        threshold="alarm_length_growth",
        is_bad=operator.gt,
        figure=growth,
        text="mean response length, as a multiple of what it was at the start, is above",
        advice="Read some rollouts: if they repeat themselves, lower learning_rate, or add a reward that asks for an "
        "end. If they reason longer and the reward rises, raise this limit.",
    ),
    Rule(
        name="sampling_rounds",
        metric="sampling/rounds",
        threshold="alarm_sampling_rounds",
        is_bad=operator.ge,
        text="the rounds that dynamic sampling takes to fill a batch have reached",
        advice="Hardly any group has mixed answers; at max_sampling_rounds the run ends. Take out questions that are "
        "always or never solved, raise num_generations, or look whether the reward can read the answers.",
    ),
    Rule(
        name="not_finite",
        metric="guard/skipped_steps",
        threshold="alarm_skipped_steps",
        is_bad=operator.ge,
        figure=increase,
        lines=1,
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
)


class Alarms:
    """Hears what a run logs. All processes hear the same figures and come to the same alarms.

    Attributes:
        stopping: the messages of alarms that end the run.
    """

    def __init__(self, config: VGPOConfig) -> None:
        self.config = config
        self.rules = [rule for rule in RULES if config.alarms != "off" and self._threshold(rule)]
        self.watches = {rule.name: Watch() for rule in self.rules}
        self.stopping: list[str] = []

    def hear(
        self, step: int, logs: Mapping[str, float], checkpoints: CheckpointStore, *, suspect: int | None = None
    ) -> list[str]:
        """Take in a logged line, and return the names of the alarms that hold now.

        An alarm is reported once, when it goes off, and then the newest checkpoint from before it is pinned.

        Args:
            step: of the line.
            logs: figures by name; those of a rule may be missing, or not be numbers.
            checkpoints: of the run.
            suspect: checkpoints of this step and later ones are not pinned. Default: that of the line.

        Raises:
            CheckpointError: a checkpoint could not be pinned.
        """
        holding = []
        for rule in self.rules:
            watch, value = self.watches[rule.name], float(logs.get(rule.metric, math.nan))
            if math.isnan(value):
                continue
            held = len(watch.bad) >= self._lines(rule)
            self._look(rule, watch, step, value)
            if len(watch.bad) < self._lines(rule):
                continue
            holding.append(rule.name)
            if not held:
                self._go_off(rule, watch, step, checkpoints, step if suspect is None else suspect)
        return holding

    def _look(self, rule: Rule, watch: Watch, step: int, value: float) -> None:
        lines = self._lines(rule)
        if len(watch.first) < lines:
            watch.first.append(value)
        figure, watch.last = rule.figure(value, watch), value
        if not rule.is_bad(figure, self._threshold(rule)):
            watch.bad.clear()
            return
        watch.since = watch.since if watch.bad else step
        watch.bad = [*watch.bad, figure][-lines:]

    def _go_off(self, rule: Rule, watch: Watch, step: int, checkpoints: CheckpointStore, suspect: int) -> None:
        low, high = min(watch.bad), max(watch.bad)
        found = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        message = (
            f"Alarm {rule.name} at step {step}: {rule.text} {rule.threshold}={self._threshold(rule):g}; found {found} "
            f"in {len(watch.bad)} logged line(s), since step {watch.since}. {rule.advice}"
        )
        if self.config.should_save:
            message += f" {self._keep_checkpoint(rule, watch.since, step, checkpoints, suspect)}"
            logger.warning("%s", message)
        if self.config.alarms == "stop":
            self.stopping.append(message)

    @staticmethod
    def _keep_checkpoint(rule: Rule, since: int, now: int, checkpoints: CheckpointStore, suspect: int) -> str:
        """Pin the newest complete checkpoint from before the first bad line, else the oldest; say which it is."""
        steps = checkpoints.complete_steps(before=suspect)
        if not steps:
            return "There is no earlier checkpoint to go back to; set save_steps to have some."
        kept = next((step for step in steps if step < since), steps[-1])
        checkpoints.pin(kept, f"{rule.name}: alarm at step {now}, bad since step {since}")
        which = "is from before it" if kept < since else "is the oldest there is"
        return (
            f"{checkpoints.path(kept)} {which} and is never deleted; to go back to it, move newer ones away and "
            "resume."
        )

    def _threshold(self, rule: Rule) -> float:
        return vars(self.config)[rule.threshold]

    def _lines(self, rule: Rule) -> int:
        return rule.lines or self.config.alarm_lines

    def state(self) -> dict[str, Any]:
        """What was seen so far, for a checkpoint."""
        return {name: asdict(watch) for name, watch in self.watches.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned; a rule that was off begins anew, and of one that is off nothing is kept."""
        self.watches |= {name: Watch(**seen) for name, seen in state.items() if name in self.watches}
