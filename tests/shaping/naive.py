"""The rivals in plain loops over Python numbers, token by token: the truth that `vgpo.shaping` is tested against."""

from fractions import Fraction
from math import ceil, exp, fsum, log, tanh

from torch import Tensor

Row = list[float]


def judged_tokens(mask: Tensor, visual_rows: Tensor) -> list[list[int]]:
    """Where each row's tokens stand that a shaping by images can judge."""
    return [[t for t in range(mask.shape[1]) if mask[i, t] and visual_rows[i]] for i in range(len(mask))]


def entropy(advantages: Row, entropies: Tensor, mask: Tensor, weight: float, divisor: float) -> list[Row]:
    shaped = []
    for i, advantage in enumerate(advantages):
        row = []
        for t in range(mask.shape[1]):
            bonus = min(weight * float(entropies[i, t]), abs(advantage) / divisor) if mask[i, t] else 0.0
            row.append(advantage + bonus)
        shaped.append(row)
    return shaped


def dependency(seen: float, damaged: float, eps: float) -> float:
    if abs(damaged - seen) < 16 * eps * max(1.0, abs(seen)):
        return 0.0
    ratio = max(-20.0, min(20.0, damaged - seen))
    return max(0.0, min(10.0, exp(ratio) - ratio - 1))


def kl_perception(
    advantages: Row, seen: Tensor, damaged: Tensor, places: list[list[int]], keep: str, least: float, eps: float
) -> list[Row]:
    scores = [[dependency(float(seen[i, t]), float(damaged[i, t]), eps) for t in row] for i, row in enumerate(places)]
    means = {i: fsum(row) / len(row) for i, row in enumerate(scores) if row}
    low, high = min(means.values(), default=0.0), max(means.values(), default=0.0)
    scaled = {i: (mean - low) / (high - low) if high > low else 0.0 for i, mean in means.items()}
    average = fsum(scaled.values()) / max(1, len(scaled))
    most = least + (1 - least) / average if average else None
    shaped = []
    for i, advantage in enumerate(advantages):
        row = [advantage] * seen.shape[1]
        factor = 1.0 if most is None or i not in scaled else least + (most - least) * scaled[i]
        best = sorted(range(len(scores[i])), key=lambda k, row=scores[i]: (-row[k], k))
        kept = {places[i][k] for k in best[: ceil(Fraction(keep) * len(best))]}
        for t in places[i]:
            row[t] = advantage * factor if t in kept else 0.0
        shaped.append(row)
    return shaped


def scaled(row: Row) -> Row:
    low, high = min(row), max(row)
    return [(value - low) / (high - low) if high > low else 0.0 for value in row]


def pgpo(
    advantages: Row, seen: Tensor, blind: Tensor, places: list[list[int]], tau: float, boost: float, eps: float
) -> list[Row]:
    shaped = []
    for i, advantage in enumerate(advantages):
        row = [advantage] * seen.shape[1]
        if places[i]:
            scores = [dependency(float(seen[i, t]), float(blind[i, t]), eps) for t in places[i]]
            importance = scaled([log(1 + score) for score in scores])
            weights = [x / tau if x < tau else 1 + boost * (x - tau) / (1 - tau) for x in importance]
            total = fsum(weights)
            for t, weight in zip(places[i], weights, strict=True):
                row[t] = advantage * (weight * len(weights) / total if total else 1.0)
        shaped.append(row)
    return shaped


def pepo(
    advantages: Row,
    similarity: Tensor,
    entropies: Tensor,
    places: list[list[int]],
    progress: float,
    alpha: float,
    temperature: float,
) -> list[Row]:
    shaped = []
    for i, advantage in enumerate(advantages):
        row = [advantage] * similarity.shape[1]
        if places[i]:
            looks = [float(similarity[i, t]) for t in places[i]]
            doubts = [float(entropies[i, t]) for t in places[i]]
            mixed = [v + h for v, h in zip(scaled(looks), scaled(doubts), strict=True)]
            mean = fsum(mixed) / len(mixed)
            powers = [
                exp((1 + alpha * tanh(g - mean)) * look / temperature) for g, look in zip(mixed, looks, strict=True)
            ]
            for t, power in zip(places[i], powers, strict=True):
                weight = len(powers) * power / fsum(powers)
                row[t] = advantage * ((1 - progress) + progress * weight)
        shaped.append(row)
    return shaped
