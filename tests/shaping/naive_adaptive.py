"""The adaptive shaping in plain loops over Python numbers: what `vgpo.shaping.adaptive` is tested against."""

from fractions import Fraction
from math import ceil, fsum, sqrt
from typing import Any

from torch import Tensor

Row = list[float]
BINS = 10


def mean(values: Row) -> float:
    return fsum(values) / len(values)


def correlation(focus: Row, rewards: Row) -> float | None:
    """c of one group: None where its rewards do not vary, 0 where its focus does not."""
    if not rewards or max(rewards) - min(rewards) <= 1e-3:
        return None
    if max(focus) - min(focus) <= 1e-6:
        return 0.0
    of_focus, of_reward = [x - mean(focus) for x in focus], [x - mean(rewards) for x in rewards]
    sizes = fsum(x * x for x in of_focus), fsum(x * x for x in of_reward)
    return fsum(x * y for x, y in zip(of_focus, of_reward, strict=True)) / sqrt(sizes[0] * sizes[1])


def bin_of(t: int, length: int) -> int:
    return ceil(Fraction(t, length) * BINS) - 1


def curve(rows: list[Row]) -> dict[int, float]:
    """e of one group by bin, from the cosines of each of its responses."""
    lowest = min((value for row in rows for value in row), default=0.0)
    found: dict[int, Row] = {}
    for row in rows:
        for t, value in enumerate(row, start=1):
            found.setdefault(bin_of(t, len(row)), []).append(value - lowest)
    return {number: mean(values) for number, values in found.items()}


def line(points: dict[int, float]) -> tuple[float, float] | None:
    """a and f of e(u) = a (1 - f u)."""
    if len(points) < 2:
        return None
    u = {number: (number + 0.5) / BINS for number in points}
    mean_u, mean_e = mean(list(u.values())), mean(list(points.values()))
    slope = fsum((u[n] - mean_u) * (points[n] - mean_e) for n in points) / fsum((u[n] - mean_u) ** 2 for n in points)
    start = mean_e - slope * mean_u
    return (start, -slope / start) if start > 1e-6 else None


def clip(value: float) -> float:
    return min(1.0, max(0.0, value))


def shares(rows: list[Row], forgetting: str, full: float) -> list[Row]:
    """What the compensation of each token of a group is multiplied by."""
    points = curve(rows)
    found = line(points)
    if found is None:
        return [[0.0] * len(row) for row in rows]
    start, decay = found
    if forgetting == "slope":
        return [[clip(decay / full)] * len(row) for row in rows]
    loss = {number: clip((1 - value / start) / full) for number, value in points.items()}
    return [[loss[bin_of(t, len(row))] for t in range(1, len(row) + 1)] for row in rows]


def scaled(values: Row) -> Row:
    low, high = min(values), max(values)
    return [0.0 if high - low < 1e-6 else (value - low) / (high - low) for value in values]


def deviations(values: Row) -> Row:
    return [value - mean(values) for value in values]


class Adaptive:
    """The whole shaping; keeps the running correlation of each stratum from batch to batch."""

    def __init__(self, forgetting: str = "slope", *, earned: bool = True, blind: bool = False) -> None:
        self.forgetting, self.earned, self.blind = forgetting, earned, blind
        self.running: dict[int, float] = {}

    def shape(
        self, advantages: Row, cosines: Tensor, mask: Tensor, groups: list[int], rows: dict[str, Any]
    ) -> list[Row]:
        places = [
            [t for t in range(mask.shape[1]) if mask[i, t] and rows["visual"][i]] for i in range(len(advantages))
        ]
        values = [[float(cosines[i, t]) for t in places[i]] for i in range(len(places))]
        members = {g: [i for i in range(len(places)) if groups[i] == g and places[i]] for g in sorted(set(groups))}
        if self.earned:
            self._learn(advantages, values, members, rows["stratum"])
        shaped = [[advantage] * mask.shape[1] for advantage in advantages]
        for some in members.values():
            share = shares([values[i] for i in some], self.forgetting, 0.55) if self.forgetting != "given" else None
            weights = [self._weights(values[i], None if share is None else share[k]) for k, i in enumerate(some)]
            if not some:
                continue
            phi = deviations(scaled([mean(row) for row in weights]))
            for k, i in enumerate(some):
                strength = self._strength(i, rows)
                for t, psi in zip(places[i], deviations(scaled(weights[k])), strict=True):
                    shaped[i][t] = advantages[i] * (1 + strength * psi) * (1 + strength * phi[k])
        return shaped

    def _learn(self, advantages: Row, values: list[Row], members: dict[int, list[int]], stratum: list[int]) -> None:
        found: dict[int, Row] = {}
        for some in members.values():
            c = correlation([mean([(s + 1) / 2 for s in values[i]]) for i in some], [advantages[i] for i in some])
            if c is not None:
                found.setdefault(stratum[some[0]], []).append(c)
        for number, some_c in found.items():
            self.running[number] = 0.9 * self.running.get(number, 0.0) + 0.1 * mean(some_c)

    def _strength(self, i: int, rows: dict[str, Any]) -> float:
        strength = clip(self.running.get(rows["stratum"][i], 0.0) / 0.2) if self.earned else 1.0
        return strength * (clip((1 - rows["blind"][i]) / (1 - rows["chance"][i])) if self.blind else 1.0)

    def _weights(self, row: Row, share: Row | None) -> Row:
        """beta 0.3, gamma 1/2, kappa 1/5, linear progress."""
        length, focus = len(row), [(s + 1) / 2 for s in row]
        tail = sorted((rho for t, rho in enumerate(focus, start=1) if 2 * t > length), reverse=True)
        threshold = tail[max(1, len(tail) // 5) - 1]
        weights = []
        for t, rho in enumerate(focus, start=1):
            growth = t / length if share is None else share[t - 1] * (t / length if self.forgetting == "slope" else 1)
            passed = 2 * t > length and rho >= threshold
            weights.append(rho * (1 + 0.3 * growth) if passed else rho)
        return weights
