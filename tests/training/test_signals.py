"""From tensors to shaped advantages, as a host goes that is not TRL's."""

import pytest
import torch

from vgpo import VGPOSettings, reweight_advantages
from vgpo.ratio import Ratio
from vgpo.shaping import SHAPINGS, build_shaping
from vgpo.training.collective import SingleProcess
from vgpo.training.signals import (
    change_statistics,
    group_numbers,
    required_signals,
    shape_across,
    shape_batch,
    signals_of,
)

CPU = torch.device("cpu")


def batch(num_rows: int = 4, width: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, width + 1, (num_rows, 1), generator=generator)
    return {
        "response_mask": torch.arange(width) < lengths,
        "group_ids": torch.arange(num_rows) // 2,
        "visual_rows": torch.arange(num_rows) != 1,
        "similarity": torch.rand(num_rows, width, generator=generator) * 2 - 1,
        "unused": torch.zeros(1),
    }


@pytest.mark.parametrize("name", SHAPINGS)
def test_a_host_computes_what_the_shaping_reads_and_the_similarity_for_the_log(name):
    shaping = build_shaping(name, {})
    assert required_signals(shaping, measure_focus=False) == shaping.signals
    assert required_signals(shaping, measure_focus=True) == shaping.signals | {"similarity"}


def test_equal_keys_have_one_number():
    keys = ["b", "b", "a", "c", "a"]
    assert group_numbers(keys, CPU).tolist() == [0, 0, 1, 2, 1]
    assert group_numbers([], CPU).dtype == torch.int64


def test_a_missing_signal_is_named():
    tensors = batch()
    del tensors["similarity"], tensors["group_ids"]
    with pytest.raises(ValueError, match=r"no group_ids, similarity; found \['response_mask', 'unused'"):
        signals_of(tensors, frozenset({"similarity"}))


def test_the_batch_is_shaped_by_the_equations_with_the_focus_for_the_log():
    tensors, advantages = batch(), torch.tensor([1.0, -1.0, 0.5, -0.5])
    signals = signals_of(tensors, frozenset({"similarity"}))
    shaped = shape_batch(build_shaping("vgpo", {}), advantages, signals)
    expected = reweight_advantages(
        advantages, tensors["similarity"], tensors["response_mask"], tensors["group_ids"], VGPOSettings(),
        visual_rows=tensors["visual_rows"],
    )  # fmt: skip
    assert torch.equal(shaped.advantages, expected.advantages)
    focus = shaped.statistics["focus/mean"]
    counted = tensors["response_mask"] & tensors["visual_rows"][:, None]
    assert isinstance(focus, Ratio)
    torch.testing.assert_close(focus.total / focus.number, ((tensors["similarity"] + 1) / 2)[counted].mean())


class Halves:
    """The second of two processes; the first has other rows, of another width."""

    rank, world_size, device = 1, 2, CPU

    def __init__(self, first: dict[str, torch.Tensor]) -> None:
        self.first = list(first.values())

    def gather_rows(self, rows):
        other = next(one for one in self.first if one.dtype == rows.dtype and one.ndim == rows.ndim)
        self.first = [one for one in self.first if one is not other]
        if rows.ndim == 1:
            return torch.cat([other, rows])
        width = max(other.shape[1], rows.shape[1])
        return torch.cat([torch.nn.functional.pad(one, (0, width - one.shape[1])) for one in (other, rows)])


def test_a_process_gets_its_own_rows_of_what_all_shape_together():
    one, two = batch(2, 7, seed=1), batch(2, 5, seed=2)
    one["group_ids"], two["group_ids"] = torch.tensor([0, 0]), torch.tensor([0, 0])
    for tensors in (one, two):
        tensors["visual_rows"] = torch.tensor([True, True])
        del tensors["unused"]
    first, own = torch.tensor([1.0, -1.0]), torch.tensor([0.25, -0.25])
    shaping = build_shaping("vgpo", {})
    order = ("response_mask", "group_ids", "visual_rows", "similarity")
    others = {**{name: one[name] for name in order}, "advantages": first}
    shaped = shape_across(shaping, own, signals_of(two, frozenset({"similarity"})), Halves(others))
    together = {
        name: torch.cat([torch.nn.functional.pad(one[name], (0, 0)), torch.nn.functional.pad(two[name], (0, 2))])
        if one[name].ndim == 2
        else torch.cat([one[name], two[name]])
        for name in order
    }
    expected = shape_batch(shaping, torch.cat([first, own]), signals_of(together, frozenset({"similarity"})))
    assert torch.equal(shaped.advantages, expected.advantages[2:, :5])
    assert torch.equal(shaped.diagnostics["token_factor"], expected.diagnostics["token_factor"][2:, :5])
    assert shaped.diagnostics["rollout_factor"].shape == (2,)


def test_a_single_process_shapes_its_own_batch():
    tensors, advantages = batch(), torch.tensor([1.0, -1.0, 0.5, -0.5])
    signals = signals_of(tensors, frozenset({"similarity"}))
    shaping = build_shaping("vgpo", {})
    alone = shape_across(shaping, advantages, signals, SingleProcess())
    assert torch.equal(alone.advantages, shape_batch(shaping, advantages, signals).advantages)


def test_the_change_of_weights_by_hand():
    nan = float("nan")
    advantages = torch.tensor([2.0, -1.0, 0.0])
    shaped = torch.tensor([[4.0, 2.0, nan], [-0.5, -1.0, -0.5], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    found = {
        name: float(ratio.total / ratio.number) for name, ratio in change_statistics(advantages, shaped, mask).items()
    }
    # f = 2, 1, 0.5, 1, 0.5: 5^2 / (5 (4 + 1 + 0.25 + 1 + 0.25)); 6 / 4; 2 / 3.
    assert found == pytest.approx(
        {
            "shaping/effective_sample_size": 25 / 32.5,
            "shaping/positive_mass": 1.5,
            "shaping/negative_mass": 2 / 3,
        }
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_shaping_no_weight_has_changed(dtype):
    tensors = batch(64, 128)
    advantages = torch.linspace(-1.5, 1.5, 64).to(dtype)
    shaped = shape_batch(build_shaping("none", {}), advantages, signals_of(tensors, frozenset()))
    assert set(shaped.statistics) == {
        "shaping/effective_sample_size", "shaping/positive_mass", "shaping/negative_mass",
    }  # fmt: skip
    for ratio in shaped.statistics.values():
        assert float(ratio.total) == float(ratio.number) > 0


def test_masses_add_up_over_micro_batches():
    tensors, advantages = batch(8, 9), torch.linspace(-1, 1, 8)
    shaped = torch.rand(8, 9, generator=torch.Generator().manual_seed(1)) * advantages[:, None]
    mask = tensors["response_mask"]
    whole = change_statistics(advantages, shaped, mask)
    parts = [change_statistics(advantages[i : i + 2], shaped[i : i + 2], mask[i : i + 2]) for i in range(0, 8, 2)]
    for name in ("shaping/positive_mass", "shaping/negative_mass"):
        total, number = (sum(part[name][k] for part in parts) for k in (0, 1))
        torch.testing.assert_close(total / number, whole[name].total / whole[name].number)
    assert sum(part["shaping/effective_sample_size"].number for part in parts) == mask.sum()


def test_no_advantage_has_no_change():
    found = change_statistics(torch.zeros(2), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))
    assert all(float(ratio.total) == float(ratio.number) == 0 for ratio in found.values())
