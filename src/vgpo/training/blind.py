"""How often prompts are answered right without their images: sampled once for each row of the data set, then kept."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vgpo.metric_names import ADAPTIVE_TEXT_ONLY_ACCURACY
from vgpo.ratio import Ratio
from vgpo.references import guess_chance
from vgpo.rewards.checked import is_async
from vgpo.training.collective import Collective, largest
from vgpo.training.records import is_correct

NOT_COLUMNS = ("prompt", "completion", "completion_ids")  # which TRL gives under other names


@dataclass
class TextOnlyAccuracy:
    """The share of right answers to each row without its images, of `num_samples` responses.

    The policy of the moment at which a row is first met answers it. All processes keep the shares of all rows.
    """

    num_samples: int
    collective: Collective
    shares: dict[int, float] = field(default_factory=dict)

    def add_missing(
        self, row_index: Sequence[int], has_images: Sequence[bool], answer: Callable[[list[int]], list[float]]
    ) -> None:
        """Ask the rows of this process that are not known. All processes call it together.

        Args:
            row_index: rows of the data set, one for each rollout.
            has_images: whether its prompt has images; others are not asked.
            answer: gives the share of right answers for each of some places of `row_index`; all processes call it with
                equally many.
        """
        missing = {
            row: place
            for place, (row, has) in enumerate(zip(row_index, has_images, strict=True))
            if has and row not in self.shares
        }
        number = largest(self.collective, len(missing))
        if not number:
            return
        places = list(missing.values())
        places += [places[0] if places else 0] * (number - len(places))  # for the company of the other processes
        asked = torch.tensor([row_index[place] for place in places], device=self.collective.device)
        shares = torch.tensor(answer(places), device=self.collective.device, dtype=torch.float64)
        rows = self.collective.gather_rows(asked).tolist()
        for row, share in zip(rows, self.collective.gather_rows(shares).tolist(), strict=True):
            self.shares.setdefault(row, share)

    def signals(self, rows: Sequence[Mapping[str, Any]], like: Tensor) -> dict[str, Tensor]:
        """By name, the signals of rollouts of rows with `row_index`, (B,) each; of the dtype and device of `like`."""
        shares = [self.shares.get(row["row_index"], 0.0) for row in rows]
        chances = [guess_chance(str(row.get("problem", "")), row.get("answer")) for row in rows]
        return {"text_only_accuracy": like.new_tensor(shares), "chance": like.new_tensor(chances)}

    def statistics(self, signals: Mapping[str, Tensor]) -> dict[str, Ratio]:
        """The mean accuracy over the rollouts."""
        shares = signals["text_only_accuracy"]
        return {ADAPTIVE_TEXT_ONLY_ACCURACY: Ratio(shares.sum(), torch.ones_like(shares).sum())}


def ignore(*args: Any, **kwargs: Any) -> None:
    """Stands for TRL's functions that log what a reward function finds: these answers are no rollouts."""


@contextmanager
def separate_draws(seed: int, rows: Sequence[int], rank: int) -> Iterator[None]:
    """Random draws inside the block follow from the seed and the rows, and change none outside."""
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(repr((seed, list(rows), rank)).encode()))
        yield


def check_reward(function: Any, name: str) -> None:
    """Whether answers without images can be graded by a reward.

    Raises:
        ValueError: it is a model, or asynchronous.
    """
    kind = "a model" if isinstance(function, nn.Module) else "asynchronous" if is_async(function) else None
    if kind:
        raise ValueError(
            f"blind_gate grades answers with the reward {name!r}, which is {kind}; expected a function that returns its "
            "rewards. Name another with filter_reward, or remove blind_gate."
        )


def shares_right(
    function: Any, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], token_ids: Sequence[Any], **given: Any
) -> list[float]:
    """The share of right responses to each row, by a reward function as TRL calls it.

    Args:
        function: the accuracy reward.
        rows: of the data set.
        texts: equally many responses to each row, row after row.
        token_ids: of the responses.
        given: further arguments of the function.
    """
    samples = len(texts) // len(rows)
    repeated = [row for row in rows for _ in range(samples)]
    is_chat = isinstance(rows[0]["prompt"], list)
    rewards = function(
        prompts=[row["prompt"] for row in repeated],
        completions=[[{"role": "assistant", "content": text}] for text in texts] if is_chat else list(texts),
        completion_ids=token_ids,
        log_extra=ignore,
        log_metric=ignore,
        **{name: [row[name] for row in repeated] for name in rows[0] if name not in NOT_COLUMNS},
        **given,
    )
    right = [bool(is_correct(reward)) for reward in rewards]
    return [sum(right[i * samples : (i + 1) * samples]) / samples for i in range(len(rows))]
