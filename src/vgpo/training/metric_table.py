"""What each metric of vgpo means: the one table from which the tables of docs/metrics.md are generated.

The names have a module of their own on the lowest floor, because shapings and readers of runs need them.
"""

from dataclasses import dataclass

from vgpo import metric_names as names
from vgpo.training.alarms import RULES, Rule
from vgpo.training.settings import AlarmSettings


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric that vgpo adds to a log line; texts are Markdown.

    name: in the log line. unit: of its value. meaning: what was measured. advice: interpretation of a value, and what
    to do.
    shapings: which log it; empty for all of them.
    """

    name: str
    unit: str
    meaning: str
    advice: str = ""
    shapings: tuple[str, ...] = ()


def alarm_metric(rule: Rule) -> Metric:
    threshold = getattr(AlarmSettings(), rule.threshold)
    return Metric(
        name=names.ALARM_PREFIX + rule.name,
        unit="1 while active",
        meaning=f"`{rule.metric}`: {rule.text} `{rule.threshold}` ({threshold:g}).",
        advice=rule.advice,
    )


# By the heading in docs/metrics.md.
METRICS: dict[str, tuple[Metric, ...]] = {
    "Focus": (
        Metric(
            name=names.FOCUS_MEAN,
            unit="ρ, 0 to 1",
            meaning="Mean ρ over all response tokens.",
            advice="0.5 means no similarity. If it falls steadily while the reward rises, the model is learning to "
            "answer without the image.",
        ),
        Metric(
            name=names.FOCUS_LATE_EARLY_RATIO,
            unit="ratio",
            meaning="Mean ρ over the second half of a rollout (2t > T) divided by the mean over its first half, "
            "averaged over rollouts with at least two tokens.",
            advice="1 is steady. Below 1, attention to the image fades during the response; VGPO should bring the "
            "ratio closer to 1.",
        ),
        Metric(
            name=names.FOCUS_ROWS_WITHOUT_IMAGE,
            unit="share of rollouts",
            meaning="Rollouts whose prompt has no visual token.",
            advice="Should match the dataset. If it is 1 on data with images, the chat template does not insert the "
            "image token.",
        ),
    ),
    "Shaping": (
        Metric(
            name=names.FOCUS_GATE_RATE,
            unit="share of tokens",
            meaning="Response tokens that are compensated (Eq. 6).",
            advice="About `tail_ratio × gate_ratio` = 0.1 by default; more for short responses (at least one token is "
            "compensated) and for ties.",
            shapings=("vgpo", "adaptive"),
        ),
        Metric(
            name=names.SHAPING_TOKEN_FACTOR_SPREAD,
            unit="distance from 1",
            meaning="Mean of |token factor − 1| over tokens. The factor of `vgpo` is 1 + ψ (Eq. 8) and averages 1 in "
            "each rollout. `entropy` counts all tokens whose advantage is not 0, also in rows without an "
            "image.",
            advice="0: the shaping changes no token; for `vgpo`, focus is constant. `kl_perception` drops three of "
            "five tokens: about 0.6, less for short responses.",
            shapings=("vgpo", "adaptive", "entropy", "kl_perception", "pgpo", "pepo"),
        ),
        Metric(
            name=names.SHAPING_ROLLOUT_FACTOR_SPREAD,
            unit="distance from 1",
            meaning="Mean of |rollout factor − 1| over rollouts. The factor of `vgpo` is 1 + φ (Eq. 11).",
            advice="0: the rollouts of a group (`vgpo`) or batch (`kl_perception`) depend on their images equally. If "
            "it is large for `vgpo` and responses grow, the sum in Eq. 9 favours long responses.",
            shapings=("vgpo", "adaptive", "kl_perception"),
        ),
        Metric(
            name=names.SHAPING_DEPENDENCY,
            unit="nats, 0 to 10",
            meaning="Mean dependency s of a response token on the image.",
            advice="Near 0: the policy responds the same way without the image, and the ranking of its tokens is "
            "noise.",
            shapings=("kl_perception", "pgpo"),
        ),
        Metric(
            name=names.SHAPING_EFFECTIVE_SAMPLE_SIZE,
            unit="share of tokens",
            meaning="(Σf)² / (N Σf²) over the N response tokens whose advantage A is not 0, f = A^V / A. Mean over "
            "the batches that are shaped (micro-batches, or the whole generation), weighted by N.",
            advice="1: all tokens keep their weight. At x, the gradient averages over as many tokens as a share x of "
            "equal weight. `kl_perception` keeps two of five tokens: about 0.4.",
        ),
        Metric(
            name=names.SHAPING_POSITIVE_MASS,
            unit="ratio",
            meaning="Σ|A^V| / Σ|A| over response tokens with A > 0.",
            advice="1: the shaping only moves weight between tokens. Far from `shaping/negative_mass`, it also "
            "changes the balance of correct and wrong rollouts, or the effective learning rate.",
        ),
        Metric(
            name=names.SHAPING_NEGATIVE_MASS,
            unit="ratio",
            meaning="Σ|A^V| / Σ|A| over response tokens with A < 0.",
            advice="See `shaping/positive_mass`.",
        ),
    ),
    "Adaptive shaping": (
        Metric(
            name=names.ADAPTIVE_CORRELATION,
            unit="−1 to 1",
            meaning="Running correlation C of mean focus and reward within groups. With `stratum_column`, one metric "
            "for each stratum: `adaptive/correlation/STRATUM`.",
            advice="Above 0, rollouts that look more are correct more often. At 0 or below, focus does not help, and "
            "nothing is reweighted.",
            shapings=("adaptive",),
        ),
        Metric(
            name=names.ADAPTIVE_STRENGTH,
            unit="0 to 1",
            meaning="Strength λ = clip(C / `full_correlation`, 0, 1), mean over the batches that are shaped. With "
            "`stratum_column`: `adaptive/strength/STRATUM`.",
            advice="0 is the base algorithm, 1 is VGPO in full. It starts at 0 and needs some batches to rise.",
            shapings=("adaptive",),
        ),
        Metric(
            name=names.ADAPTIVE_COMPENSATION,
            unit="0 to 1",
            meaning="Mean share of the compensation that the measured decay of focus calls for. Not with "
            "`forgetting: given`.",
            advice="0: focus does not decay along responses. 1: compensated as in VGPO.",
            shapings=("adaptive",),
        ),
        Metric(
            name=names.ADAPTIVE_TEXT_ONLY_ACCURACY,
            unit="share of answers",
            meaning="Correct answers to the prompts without their images, mean over the rollouts with an image; with "
            "`blind_gate` only. Each prompt is asked once, with the policy at the time it is first sampled.",
            advice="Near the accuracy with images: the questions do not need them, and the gate turns the "
            "reweighting off. Multiple choice has at least the share of a guess.",
            shapings=("adaptive",),
        ),
    ),
    "Sampling": (
        Metric(
            name=names.SAMPLING_LOG_PROB_GAP,
            unit="nats per token",
            meaning="Mean |difference| of a response's log-probabilities between the first update and its sampling, "
            "which have the same weights. Only for single-turn generation by transformers or vLLM.",
            advice="Rounding: below 1e-4 in float32, about 0.01 in bfloat16, more with dropout (LoRA's is on in "
            "updates). Larger: the update does not score the policy that sampled; see the alarm `log_prob_gap`.",
        ),
        Metric(
            name=names.SAMPLING_FAILED_ROLLOUTS,
            unit="rollouts",
            meaning="Rollouts of a step that verl's agent loop gave up (host: verl).",
            advice="0. Their groups are smaller; verl's log says why. A few after a timeout are harmless.",
        ),
        Metric(
            name=names.SAMPLING_IMPORTANCE_RATIO,
            unit="ratio",
            meaning="Mean importance ratio of the policy to vLLM, of sequences or tokens (TRL; on verl before any "
            "correction). Where an engine generates.",
            advice="Near 1 in float32, 0.8 to 1 in bfloat16. Lower: vLLM does not compute what the policy computes; "
            "see the alarm `importance_ratio`. Below 0.01 the run ends.",
        ),
    ),
    "Dynamic sampling": (
        Metric(
            name=names.SAMPLING_GROUPS_DRAWN,
            unit="groups",
            meaning="Groups rolled out for this batch.",
            advice="The cost: `groups_drawn / groups_kept` times as many rollouts as without dynamic sampling.",
        ),
        Metric(
            name=names.SAMPLING_GROUPS_KEPT,
            unit="groups",
            meaning="Groups trained on.",
            advice="Always the size of the batch.",
        ),
        Metric(
            name=names.SAMPLING_GROUPS_TOO_EASY,
            unit="groups",
            meaning="Groups with mean accuracy ≥ `accuracy_high`.",
            advice="If it grows, the data is becoming too easy for the policy.",
        ),
        Metric(
            name=names.SAMPLING_GROUPS_TOO_HARD,
            unit="groups",
            meaning="Groups with mean accuracy ≤ `accuracy_low`, or that no reward could score.",
            advice="If it is most groups, the questions are too hard, or the grader cannot read the answers.",
        ),
        Metric(
            name=names.SAMPLING_GROUPS_CUT,
            unit="groups",
            meaning="Groups of mixed accuracy that exceed the size of the batch. They are dropped and not used later.",
            advice="Waste of the last round; small by design.",
        ),
        Metric(
            name=names.SAMPLING_ROUNDS,
            unit="rounds",
            meaning="Rounds of drawing prompts.",
            advice="If a batch is not full after `max_sampling_rounds`, the run ends with an error that lists the "
            "accuracies.",
        ),
        Metric(
            name=names.SAMPLING_ACCURACY_DRAWN,
            unit="share of rollouts",
            meaning="Mean accuracy over all groups drawn.",
            advice="Use it as training accuracy: `reward` averages over rounds of unequal size.",
        ),
    ),
    "Benchmarks": (
        Metric(
            name=names.suite_metric("TASK", "accuracy"),
            unit="share of rows",
            meaning="Greedy accuracy on the sampled rows of a benchmark of `eval_suite`. Rows that cannot be asked "
            "count as wrong.",
            advice="A sample of N rows has a 95 % interval of about ±1/√N: 100 rows show changes of 10 points.",
        ),
        Metric(
            name=names.suite_metric("TASK", "no_box"),
            unit="share of answers",
            meaning="Answers without a `\\boxed{}`, which are always wrong.",
            advice="If it is high at the start and falls, part of the gain in accuracy is the form of the answer.",
        ),
        Metric(
            name=names.suite_metric("TASK", "truncated"),
            unit="share of answers",
            meaning="Answers truncated at `max_completion_length`.",
            advice="If it is high, the accuracy says little; raise `max_completion_length`.",
        ),
    ),
    "Guard": (
        Metric(
            name=names.GUARD_SKIPPED_STEPS,
            unit="steps",
            meaning="Steps so far whose loss or gradient norm was not finite. They did not change the weights.",
            advice="Investigate any value above 0. `max_skipped_steps` in a row end the run, and the last good "
            "weights are saved.",
        ),
    ),
    "Alarms": tuple(alarm_metric(rule) for rule in RULES),
    "Time": (
        Metric(
            name=names.TIMES["preparation"],
            unit="s per step",
            meaning="Reading rows, tokenizing, processing images, padding, selecting groups.",
        ),
        Metric(name=names.TIMES["generation"], unit="s per step", meaning="Sampling rollouts."),
        Metric(name=names.TIMES["reward"], unit="s per step", meaning="Reward functions."),
        Metric(
            name=names.TIMES["scoring"],
            unit="s per step",
            meaning="Log-probability passes without a gradient: old policy, reference model, the scoring pass that "
            "split groups need where sampling does not record visual similarity, and the pass with ablated images of "
            "a shaping that compares with them.",
        ),
        Metric(name=names.TIMES["update"], unit="s per step", meaning="Forward and backward of the update."),
    ),
    "Grader": (
        Metric(
            name=names.GRADER_TIMEOUTS,
            unit="answers",
            meaning="Answers whose symbolic check timed out and was killed, mean per call of the reward. They count "
            "as wrong.",
            advice="If it stays above 0, the policy writes answers that are expensive to check.",
        ),
    ),
}
