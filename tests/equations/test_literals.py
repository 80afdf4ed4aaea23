"""Each equation on numbers small enough to work out by hand; the arithmetic is in comments."""

import pytest
import torch

from vgpo import VGPOSettings, reweight_advantages, visual_prototype, visual_similarity
from vgpo.equations import group_index, progress, tail_tokens, visual_gate

F64 = torch.float64


def tensor(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def similarity_of(focus: list) -> torch.Tensor:
    """The cosines whose focus score is given: S = 2 rho - 1."""
    return 2 * tensor(focus) - 1


def whole(similarity: torch.Tensor) -> torch.Tensor:
    return torch.ones(similarity.shape, dtype=torch.bool)


def gated(focus: list[float], tail_ratio: float, gate_ratio: float) -> list[int]:
    """Positions 1 ... T that pass the gate, in one rollout without padding."""
    length = torch.tensor([[len(focus)]])
    tail = tail_tokens(torch.arange(1, len(focus) + 1)[None], length, tail_ratio)
    gate = visual_gate(tensor([focus]), tail, gate_ratio)[0]
    return [t for t, passed in enumerate(gate.tolist(), start=1) if passed]


def test_prototype_is_the_mean_of_the_visual_tokens() -> None:
    hidden = tensor([[[9, 9], [1, 2], [3, 6]], [[5, 7], [9, 9], [9, 9]]])
    mask = torch.tensor([[False, True, True], [True, False, False]])
    # ((1, 2) + (3, 6)) / 2 = (2, 4); (5, 7) / 1
    torch.testing.assert_close(visual_prototype(hidden, mask), tensor([[2, 4], [5, 7]]))


def test_similarity_is_the_cosine() -> None:
    hidden = tensor([[[3, 4], [-4, -3], [-3, 4], [0, 0]]])
    # (3*4 + 4*3) / (5*5) = 24/25; -25/25; (-12 + 12) / 25; a zero state has no direction
    expected = tensor([[0.96, -1, 0, 0]])
    torch.testing.assert_close(visual_similarity(hidden, tensor([[4, 3]])), expected)


def test_one_rollout_at_the_papers_defaults() -> None:
    similarity = similarity_of([[0.8, 0.4, 0.6, 1.0]])
    out = reweight_advantages(tensor([2]), similarity, whole(similarity), torch.tensor([7]), VGPOSettings())
    # tail t > 2: {3, 4}, k = max(1, floor(0.2 * 2)) = 1, threshold 1.0, so only t = 4 passes
    assert out.gate.tolist() == [[False, False, False, True]]
    # w = 0.8, 0.4, 0.6, 1.0 * (1 + 0.3 * 4/4) = 1.3; max - min = 0.9
    # w^ = 4/9, 0, 2/9, 1; mean (15/9) / 4 = 5/12; psi = 1/36, -5/12, -7/36, 7/12
    expected = tensor([[37 / 36, 7 / 12, 29 / 36, 19 / 12]])
    torch.testing.assert_close(out.token_factor, expected, atol=1e-7, rtol=0)
    assert out.rollout_factor.tolist() == [1.0]  # a group of one
    torch.testing.assert_close(out.advantages, 2 * expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(out.focus, tensor([[0.8, 0.4, 0.6, 1.0]]))


def test_rollout_factors_of_two_groups() -> None:
    # s = 2 rho = 0.5, 1.0, 1.5 in group 4 and 0.2, 1.8 in group -9, interleaved
    similarity = similarity_of([[0.25] * 2, [0.1] * 2, [0.5] * 2, [0.75] * 2, [0.9] * 2])
    out = reweight_advantages(
        tensor([1, 2, 3, -4, 5]),
        similarity,
        whole(similarity),
        torch.tensor([4, -9, 4, 4, -9]),
        VGPOSettings(strength=0),
    )
    # group 4: s^ = 0, 0.5, 1, mean 0.5, phi = -0.5, 0, 0.5; group -9: s^ = 0, 1, phi = -0.5, 0.5
    expected = tensor([0.5, 0.5, 1, 1.5, 1.5])
    torch.testing.assert_close(out.rollout_factor, expected, atol=1e-7, rtol=0)
    assert out.token_factor.tolist() == [[1.0, 1.0]] * 5  # w is constant in each
    # 1 * 0.5, 2 * 0.5, 3 * 1, -4 * 1.5, 5 * 1.5
    expected = tensor([[0.5] * 2, [1] * 2, [3] * 2, [-6] * 2, [7.5] * 2])
    torch.testing.assert_close(out.advantages, expected, atol=1e-6, rtol=0)


def test_score_is_a_sum_so_that_length_counts() -> None:
    similarity = similarity_of([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    settings = VGPOSettings(strength=0)
    out = reweight_advantages(tensor([1, 1, 1]), similarity, mask, torch.zeros(3).long(), settings)
    # s = 1.5, 0.5, 1.0; s^ = 1, 0, 0.5; phi = 0.5, -0.5, 0
    torch.testing.assert_close(out.rollout_factor, tensor([1.5, 0.5, 1.0]), atol=1e-7, rtol=0)


def test_exponential_compensation_everywhere() -> None:
    similarity = similarity_of([[0.5, 0.5, 0.5, 0.5]])
    settings = VGPOSettings(strength=0.5, tail_ratio=1, gate_ratio=1, schedule="exponential")
    out = reweight_advantages(tensor([1]), similarity, whole(similarity), torch.tensor([0]), settings)
    # w = 0.5 * (1 + 0.5 * (1, 4, 9, 16) / 16); w - min w = (0, 3, 8, 15) / 64
    # w^ = 0, 3/15, 8/15, 1; mean 26/60 = 13/30; psi = -13/30, -7/30, 3/30, 17/30
    expected = tensor([[17, 23, 33, 47]]) / 30
    torch.testing.assert_close(out.token_factor, expected, atol=1e-7, rtol=0)
    assert out.gate.all()


def test_a_hole_in_the_response_is_not_counted() -> None:
    similarity = similarity_of([[0.5, 0.9, 0.5, 0.1]])
    similarity[0, 1] = float("nan")
    mask = torch.tensor([[True, False, True, False]])
    settings = VGPOSettings(strength=1, tail_ratio=1, gate_ratio=1)
    out = reweight_advantages(tensor([-2]), similarity, mask, torch.tensor([0]), settings)
    # t = 1, 2 of T = 2: w = 0.5 * 1.5, 0.5 * 2; w^ = 0, 1; psi = -0.5, 0.5
    expected = tensor([[0.5, 1, 1.5, 1]])
    torch.testing.assert_close(out.token_factor, expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(out.advantages, -2 * expected, atol=1e-6, rtol=0)
    assert out.focus.tolist() == [[0.5, 0, 0.5, 0]]
    assert out.gate.tolist() == [[True, False, True, False]]


@pytest.mark.parametrize(
    ("focus", "tail_ratio", "gate_ratio", "expected"),
    [
        # tail 6 ... 10, k = floor(0.4 * 5) = 2, second largest of 0.9, 0.7, 0.5, 0.7, 0.1 is 0.7
        ([1.0] * 5 + [0.9, 0.7, 0.5, 0.7, 0.1], 0.5, 0.4, [6, 7, 9]),
        # k = 2, second largest of 0.9, 0.7, 0.9, 0.5, 0.7 is 0.9
        ([1.0] * 5 + [0.9, 0.7, 0.9, 0.5, 0.7], 0.5, 0.4, [6, 8]),
        # k = max(1, floor(0.1 * 3)) = 1 and all three are the largest
        ([0.2, 0.2, 0.2], 1.0, 0.1, [1, 2, 3]),
        # t > (1 - 0.5) * 5 = 2.5
        ([0.1, 0.2, 0.3, 0.4, 0.5], 0.5, 1.0, [3, 4, 5]),
        # t > (1 - 0.01) * 1 = 0.99
        ([0.3], 0.01, 0.01, [1]),
    ],
)
def test_gate(focus: list[float], tail_ratio: float, gate_ratio: float, expected: list[int]) -> None:
    assert gated(focus, tail_ratio, gate_ratio) == expected


@pytest.mark.parametrize(
    ("gate_ratio", "num_tokens", "num_passed"),
    # in floats 0.29 * 100 = 28.999999999999996 and 0.07 * 100 = 7.000000000000001
    [(0.2, 15, 3), (0.29, 100, 29), (0.07, 100, 7), (0.57, 100, 57), (1 / 3, 9, 3), (0.33, 9, 2), (1.0, 7, 7)],
)
def test_gate_count_is_free_of_float_noise(gate_ratio: float, num_tokens: int, num_passed: int) -> None:
    ascending = [t / 100 for t in range(num_tokens)]
    assert len(gated(ascending, 1.0, gate_ratio)) == num_passed


@pytest.mark.parametrize(
    ("tail_ratio", "num_tokens", "num_tail"),
    # in floats (1 - 0.9) * 10 = 0.9999999999999998 and (1 - 0.4) * 5 = 3.0
    [(0.9, 10, 9), (0.4, 5, 2), (0.3, 10, 3), (0.1, 10, 1), (0.7, 10, 7), (2 / 3, 9, 6), (0.5, 1, 1)],
)
def test_tail_size_is_free_of_float_noise(tail_ratio: float, num_tokens: int, num_tail: int) -> None:
    tail = tail_tokens(torch.arange(1, num_tokens + 1)[None], torch.tensor([[num_tokens]]), tail_ratio)
    assert tail.tolist() == [[False] * (num_tokens - num_tail) + [True] * num_tail]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (VGPOSettings(), [0.25, 0.5, 0.75, 1]),  # t / 4
        (VGPOSettings(schedule="exponential"), [0.0625, 0.25, 0.5625, 1]),  # (t / 4)^2
        (VGPOSettings(schedule="exponential", exponent=0.5), [0.5, 0.5**0.5, 0.75**0.5, 1]),
        (VGPOSettings(schedule="step"), [0, 1, 1, 1]),  # t / 4 >= 0.5
        (VGPOSettings(schedule="step", step=0.8), [0, 0, 0, 1]),
        (VGPOSettings(preset="released"), [0, 1 / 3, 2 / 3, 1]),  # (t - 1) / 3
        (VGPOSettings(preset="released", schedule="exponential"), [0, 1 / 9, 4 / 9, 1]),
        (VGPOSettings(preset="released", schedule="step"), [0, 0, 1, 1]),
    ],
)
def test_schedule_of_four_tokens(settings: VGPOSettings, expected: list[float]) -> None:
    growth = progress(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[4]]), settings, F64)
    torch.testing.assert_close(growth, tensor([expected]))


@pytest.mark.parametrize(("preset", "expected"), [("paper", 1.0), ("released", 0.0)])
@pytest.mark.parametrize("schedule", ["linear", "exponential", "step"])
def test_schedule_of_one_token(preset: str, schedule: str, expected: float) -> None:
    settings = VGPOSettings(preset=preset, schedule=schedule)
    assert progress(torch.tensor([[1]]), torch.tensor([[1]]), settings, F64).item() == expected


def test_step_is_free_of_float_noise() -> None:
    # 7 / 10 >= 0.7, whatever 7 / 10 is in float32
    growth = progress(
        torch.arange(1, 11)[None], torch.tensor([[10]]), VGPOSettings(schedule="step", step=0.7), torch.float32
    )
    assert growth.tolist() == [[0.0] * 6 + [1.0] * 4]


def test_released_preset() -> None:
    similarity = tensor([[-0.2, 0.2, 0.6], [0.4, 0.4, -1.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    settings = VGPOSettings(preset="released", strength=0)
    out = reweight_advantages(tensor([1, 10]), similarity, mask, torch.tensor([3, 3]), settings)
    # the smallest S that counts is -0.2: rho = 0, 0.4, 0.8 and 0.6, 0.6
    torch.testing.assert_close(out.focus, tensor([[0, 0.4, 0.8], [0.6, 0.6, 0]]))
    # w^ = 0, 0.5, 1 and 0, 0; psi = -0.5, 0, 0.5 and 0, 0
    expected = tensor([[0.5, 1, 1.5], [1, 1, 1]])
    torch.testing.assert_close(out.token_factor, expected, atol=1e-7, rtol=0)
    # s = sum w^ = 1.5 and 0; s^ = 1, 0; phi = 0.5, -0.5; 1 + phi = 1.5 and 0.5, the latter clamped to 0.9
    torch.testing.assert_close(out.rollout_factor, tensor([1.5, 0.9]), atol=1e-7, rtol=0)
    expected = tensor([[0.75, 1.5, 2.25], [9, 9, 10]])
    torch.testing.assert_close(out.advantages, expected, atol=1e-6, rtol=0)


def test_released_preset_does_not_lift_positive_similarities() -> None:
    similarity = tensor([[0.25, 0.5]])
    settings = VGPOSettings(preset="released")
    out = reweight_advantages(tensor([1]), similarity, whole(similarity), torch.tensor([0]), settings)
    assert out.focus.tolist() == [[0.25, 0.5]]  # S - min(0, 0.25)


def test_released_preset_bounds_the_token_factor() -> None:
    similarity = tensor([[-1.0] + [1.0] * 19])
    ids = torch.tensor([0])
    paper = reweight_advantages(tensor([1]), similarity, whole(similarity), ids, VGPOSettings(strength=0))
    settings = VGPOSettings(strength=0, preset="released")
    released = reweight_advantages(tensor([1]), similarity, whole(similarity), ids, settings)
    # w^ = 0 once and 1 nineteen times: psi = -0.95 and 0.05
    assert paper.token_factor[0, 0].item() == pytest.approx(0.05, abs=1e-7)
    assert released.token_factor[0, 0].item() == 0.1
    assert released.token_factor[0, 1].item() == pytest.approx(1.05, abs=1e-7)


def test_groups_are_numbered_by_id() -> None:
    ids = torch.tensor([2**62, -5, 0, -5, 2**62, -(2**63)])
    assert group_index(ids).tolist() == [3, 1, 2, 1, 3, 0]
