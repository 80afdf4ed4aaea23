"""Reward functions with TRL's signature: one list per column, keyword arguments, one float per completion."""

from collections.abc import Callable, Sequence
from typing import Any

from vgpo.answers import extract_boxed
from vgpo.metric_names import GRADER_TIMEOUTS
from vgpo.rewards.grader import Grader, default_grader, lenient_grader

THINK, END_THINK = "<think>", "</think>"

Completion = str | list[dict[str, Any]]


def accuracy_reward(
    completions: Sequence[Completion],
    answer: Sequence[str | int],
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    r"""1.0 if the last `\boxed{}` of the completion is correct (`Grader.grade`), else 0.0.

    completions: texts, or conversations whose last message is the response. answer: the reference answers.
    log_metric receives `GRADER_TIMEOUTS`, the number of symbolic checks of this call that were killed.
    """
    return _accuracy(default_grader(), completions, answer, log_metric)


def lenient_accuracy_reward(
    completions: Sequence[Completion],
    answer: Sequence[str | int],
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    """As `accuracy_reward`, with math-verify as fallback if mathruler says no (`lenient_grader`).

    More lenient than the reward of VGPO's training: it accepts unreduced fractions and sets in any order.
    """
    return _accuracy(lenient_grader(), completions, answer, log_metric)


def format_reward(completions: Sequence[Completion], response_prefix: str | None = None, **kwargs: Any) -> list[float]:
    r"""1.0 if the response is `<think>...</think>` and then an answer with one `\boxed{}`, else 0.0.

    The complete response is checked: surrounding blanks are allowed, text before `<think>` is not. The answer's box
    must be the only one after `</think>`, closed and not empty.
    response_prefix: the part of each response that the chat template writes at the end of the prompt, such as
    `<think>`; a completion continues from there. `VGPOTrainer` passes it. None if unknown: the completion may then
    begin within the thought.
    """
    texts = [_response(row, completion) for row, completion in enumerate(completions)]
    if response_prefix is None:
        return [float(_has_format(text.strip()) or _has_format(f"{THINK}{text}")) for text in texts]
    return [float(_has_format((response_prefix + text).strip())) for text in texts]


def _accuracy(
    grader: Grader,
    completions: Sequence[Completion],
    answer: Sequence[str | int],
    log_metric: Callable[[str, float], None] | None,
) -> list[float]:
    timeouts_before = grader.statistics.timeouts
    verdicts = grader.grade([_response(row, completion) for row, completion in enumerate(completions)], answer)
    if log_metric is not None:
        log_metric(GRADER_TIMEOUTS, float(grader.statistics.timeouts - timeouts_before))
    return [float(verdict) for verdict in verdicts]


def _has_format(response: str) -> bool:
    thought, closing, answer = response.partition(END_THINK)
    return (
        thought.startswith(THINK)
        and thought.count(THINK) == 1
        and bool(closing)
        and THINK not in answer
        and END_THINK not in answer
        and answer.count("\\boxed{") == 1
        and bool(extract_boxed(answer))
    )


def _response(row: int, completion: Completion) -> str:
    response = completion[-1]["content"] if isinstance(completion, list) and completion else completion
    if not isinstance(response, str):
        raise TypeError(
            f"row {row}: the completion is {type(response).__name__}, expected str or a list of messages "
            "whose last has text as its content"
        )
    return response
