"""Samples made by hand, and a check of them."""

import torch

from vgpo.focus_check.measure import measure
from vgpo.focus_check.records import VERSION, FocusCheck, Settings
from vgpo.focus_check.sampling import Samples
from vgpo.focus_check.verdict import verdict_of

SETTINGS = Settings(
    template="plain", max_new_tokens=8, limit=64, samples=2, blind_samples=2, temperature=1.0, seed=0,
    stratum_column=None,
)  # fmt: skip


def samples(
    groups: list[list[tuple[bool, list[float]]]], *, strata: tuple[str, ...] | None = None, blind: bool = False
) -> Samples:
    """Samples of questions; a response is its verdict and the cosine of each of its tokens, in both states."""
    responses = [one for group in groups for one in group]
    width = max(len(cosines) for _, cosines in responses)
    similarity = torch.tensor([[*cosines, *[float("nan")] * (width - len(cosines))] for _, cosines in responses])
    mask = torch.tensor([[place < len(cosines) for place in range(width)] for _, cosines in responses])
    return Samples(
        rows=tuple(10 + number for number in range(len(groups))),
        question=torch.tensor([number for number, group in enumerate(groups) for _ in group]),
        mask=mask,
        similarity={"reading": similarity, "predicting": -similarity},
        correct=torch.tensor([correct for correct, _ in responses]),
        truncated=torch.zeros(len(responses), dtype=torch.bool),
        blind_correct=torch.full((len(groups), 2), blind),
        chance=torch.zeros(len(groups)),
        strata=strata,
    )


def gaining(number: int = 12, *, strata: tuple[str, ...] | None = None) -> Samples:
    """Questions whose right answer looks at the image more than the wrong one."""
    return samples(
        [[(True, [0.6, 0.4 + 0.01 * i]), (False, [0.3, 0.1 - 0.01 * i])] for i in range(number)], strata=strata
    )


def check(found: Samples, *, model: str = "model", data: str = "data", column: str | None = None) -> FocusCheck:
    measures = measure(found)
    return FocusCheck(
        version=VERSION,
        vgpo="0.0.0",
        created="2026-01-02T03:04:05+00:00",
        model=model,
        data=data,
        settings=SETTINGS.model_copy(update={"stratum_column": column}),
        verdict=verdict_of(measures),
        measures=measures,
    )
