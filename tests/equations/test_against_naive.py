"""The tensor functions against plain loops in float64, with NaN wherever nothing may be read."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vgpo.equations
from tests.equations import naive
from vgpo import (
    ReweightedAdvantages,
    VGPOSettings,
    reweight_advantages,
    visual_prototype,
    visual_similarity,
)

NAN = float("nan")


def random_hidden(B: int, P: int, T: int, D: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Hidden states (B, P + T, D) of a prompt and a response, and the prompt's visual tokens, bool (B, P)."""
    generator = torch.Generator().manual_seed(B * 1000 + P * 100 + T * 10 + D)
    hidden = torch.randn(B, P + T, D, generator=generator, dtype=torch.float64).to(dtype) + 0.5
    visual = torch.rand(B, P, generator=generator) < 0.6
    visual[0] = False
    hidden[:, :P][~visual] = NAN
    return hidden, visual


def assert_same(found: ReweightedAdvantages, expected: ReweightedAdvantages, atol: float) -> None:
    for field in fields(ReweightedAdvantages):
        torch.testing.assert_close(
            vars(found)[field.name],
            vars(expected)[field.name],
            atol=atol,
            rtol=0,
            check_dtype=False,
            check_device=False,
            msg=lambda text, name=field.name: f"{name}: {text}",
        )


@pytest.mark.parametrize(("B", "P", "T", "D"), [(1, 1, 1, 1), (2, 3, 5, 7), (3, 13, 9, 33), (5, 6, 31, 64)])
@pytest.mark.parametrize("block_elements", [1, 100, 2**21])
def test_prototype_and_similarity(
    B: int, P: int, T: int, D: int, block_elements: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_BLOCK_ELEMENTS_CPU", "_BLOCK_ELEMENTS"):
        monkeypatch.setattr(vgpo.equations, name, block_elements)
    hidden, visual = (tensor.to(device) for tensor in random_hidden(B, P, T, D, torch.float64))
    prompt, response = hidden[:, :P], hidden[:, P:]  # views of one tensor, as the host has them
    prototype = visual_prototype(prompt, visual)
    torch.testing.assert_close(prototype, naive.visual_prototype(prompt, visual))
    assert prototype[0].eq(0).all()
    similarity = visual_similarity(response, prototype)
    torch.testing.assert_close(similarity, naive.visual_similarity(response, prototype), check_device=False)
    assert similarity[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hidden_states_below_float64_are_reduced_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    hidden, visual = (tensor.to(device) for tensor in random_hidden(4, 40, 20, 256, dtype))
    prompt, response = hidden[:, :40], hidden[:, 40:]
    prototype = visual_prototype(prompt, visual)
    similarity = visual_similarity(response, prototype)
    assert prototype.dtype == similarity.dtype == torch.float32
    exact_prototype = naive.visual_prototype(prompt.double(), visual)
    exact_similarity = naive.visual_similarity(response.double(), exact_prototype)
    torch.testing.assert_close(prototype.double(), exact_prototype, atol=1e-6, rtol=0)
    torch.testing.assert_close(similarity.double(), exact_similarity, atol=1e-6, rtol=0, check_device=False)


def test_autocast_does_not_lower_the_precision(device: torch.device) -> None:
    hidden, visual = (tensor.to(device) for tensor in random_hidden(3, 8, 9, 512, torch.float32))
    expected = visual_similarity(hidden[:, 8:], visual_prototype(hidden[:, :8], visual))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = visual_similarity(hidden[:, 8:], visual_prototype(hidden[:, :8], visual))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("at", [NAN, float("inf")])
def test_prototype_reads_visual_positions_only(at: float) -> None:
    hidden = torch.ones(2, 3, 2)
    visual = torch.tensor([[True, False, True], [False, False, False]])
    hidden[~visual] = at
    assert visual_prototype(hidden, visual).tolist() == [[1, 1], [0, 0]]


def test_a_visual_nan_is_not_hidden() -> None:
    hidden = torch.full((1, 2, 2), NAN)
    assert visual_prototype(hidden, torch.ones(1, 2, dtype=torch.bool)).isnan().all()


# Cosines on a coarse grid, so that ties and constant rows are common.
cosines = st.sampled_from([-1.0, -0.5, -0.3, 0.0, 0.1, 0.25, 0.7, 0.9, 1.0])
shares = st.sampled_from([0.01, 0.1, 0.2, 0.29, 0.3, 0.5, 0.7, 0.9, 1.0])


@st.composite
def vgpo_settings(draw: st.DrawFn) -> VGPOSettings:
    intra, inter = draw(st.booleans()), draw(st.booleans())
    weighs = intra or inter  # else strength and schedule have no effect, which is an error
    schedule = draw(st.sampled_from(["linear", "exponential", "step"] if weighs else ["linear"]))
    extra = {
        "linear": {},
        "exponential": {"exponent": draw(st.sampled_from([0.5, 2.0, 3.0]))},
        "step": {"step": draw(shares)},
    }
    return VGPOSettings(
        strength=draw(st.sampled_from([0, 0.3, 2.0] if weighs else [0.3])),
        tail_ratio=draw(shares),
        gate_ratio=draw(shares),
        schedule=schedule,
        intra=intra,
        inter=inter,
        rollout_score=draw(st.sampled_from(["sum", "mean"] if inter else ["sum"])),
        preset=draw(st.sampled_from(["paper", "released"])),
        **extra[schedule],
    )


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    B, T = draw(st.integers(1, 7)), draw(st.integers(1, 11))
    rows = lambda of, width: st.lists(st.lists(of, min_size=width, max_size=width), min_size=B, max_size=B)  # noqa: E731
    similarity = torch.tensor(draw(rows(cosines, T)), dtype=torch.float64)
    mask = torch.tensor(draw(rows(st.booleans(), T)))
    group_ids = torch.tensor(draw(rows(st.sampled_from([-3, 0, 2**40]), 1)))[:, 0]
    visual_rows = torch.tensor(draw(rows(st.sampled_from([True, True, False]), 1)))[:, 0]
    advantages = torch.tensor(draw(rows(st.sampled_from([-1.5, 0.0, 0.25, 2.0]), 1)), dtype=torch.float64)
    similarity[~(mask & visual_rows[:, None])] = NAN
    return advantages[:, 0], similarity, mask, group_ids, visual_rows


@given(batch=batches(), vgpo=vgpo_settings())
@settings(max_examples=150, deadline=None)
def test_reweighting_of_any_batch(batch: tuple[torch.Tensor, ...], vgpo: VGPOSettings) -> None:
    advantages, similarity, mask, group_ids, visual_rows = batch
    found = reweight_advantages(advantages, similarity, mask, group_ids, vgpo, visual_rows)
    expected = naive.reweight_advantages(advantages, similarity, mask, group_ids, vgpo, visual_rows)
    assert found.advantages.dtype == found.token_factor.dtype == torch.float64
    assert_same(found, expected, atol=1e-6)


@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 17), (5, 1), (6, 33), (12, 101)])
@pytest.mark.parametrize("preset", ["paper", "released"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_reweighting_of_odd_sizes(B: int, T: int, preset: str, dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(B * 1000 + T)
    similarity = (torch.rand(B, T, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)
    advantages = torch.randn(B, generator=generator, dtype=torch.float64).to(dtype)
    lengths = torch.randint(1, T + 1, (B, 1), generator=generator)
    mask = torch.arange(T) < lengths
    group_ids = torch.randint(0, 3, (B,), generator=generator)
    similarity[~mask] = NAN
    vgpo = VGPOSettings(preset=preset)
    batch = (advantages, similarity, mask, group_ids)
    found = reweight_advantages(*(tensor.to(device) for tensor in batch), vgpo)
    expected = naive.reweight_advantages(*batch, vgpo)
    assert found.advantages.dtype == dtype
    assert found.advantages.device.type == device.type
    assert_same(found, expected, atol=1e-9 if dtype == torch.float64 else 2e-5)


def test_bfloat16_inputs_are_reweighted_in_float32(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(5)
    similarity = (torch.rand(6, 20, generator=generator) * 2 - 1).bfloat16()
    advantages = torch.randn(6, generator=generator).bfloat16()
    mask, group_ids = torch.ones(6, 20, dtype=torch.bool), torch.arange(6) % 2
    batch = (advantages, similarity, mask, group_ids)
    found = reweight_advantages(*(tensor.to(device) for tensor in batch), VGPOSettings())
    assert found.advantages.dtype == found.rollout_factor.dtype == torch.float32
    expected = naive.reweight_advantages(*batch, VGPOSettings())
    assert_same(found, expected, atol=2e-5)
