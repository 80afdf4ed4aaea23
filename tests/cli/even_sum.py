"""A reward of which groups have several values, whatever the model has learnt."""

from typing import Any


def even_sum(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(sum(map(ord, completion[0]["content"])) % 2 == 0) for completion in completions]
