"""The rivals against plain loops and hand-computed numbers, with NaN wherever nothing may be read."""

import dataclasses
import math

import pytest
import torch

from tests.shaping import naive
from vgpo.shaping import IMAGE_SIGNALS, Shaped, Signals, build_shaping
from vgpo.shaping.dependency import token_dependency
from vgpo.shaping.entropy import EntropySettings, entropy_advantages
from vgpo.shaping.kl_perception import dependency_factor, pivotal_tokens
from vgpo.shaping.pepo import PEPOSettings, perception_weight
from vgpo.shaping.pgpo import PGPOSettings, grounded_weight
from vgpo.trl import VGPOConfig

NAN = float("nan")
RIVALS = ["entropy", "kl_perception", "pgpo", "pepo"]
PER_TOKEN = ("similarity", "layer_similarity", "entropy", "log_probs", "corrupted_log_probs", "text_only_log_probs")


def case(B: int, T: int, seed: int = 0) -> tuple[torch.Tensor, Signals]:
    """Advantages and signals of B rollouts: holes in responses, a row without an image, NaN where none may read."""
    generator = torch.Generator().manual_seed(100 * B + T + seed)

    def draw() -> torch.Tensor:
        return torch.rand(B, T, generator=generator, dtype=torch.float64)

    mask = draw() < 0.8
    mask[:, 0] = True
    visual_rows = torch.arange(B) % 4 != 3
    values = {
        "layer_similarity": 2 * draw() - 1,
        "entropy": 3 * draw(),
        "log_probs": -4 * draw(),
        "corrupted_log_probs": -6 * draw(),
        "text_only_log_probs": -30 * draw(),
    }
    for name, value in values.items():
        value[~mask] = NAN
        if name in IMAGE_SIGNALS:
            value[~visual_rows] = NAN
    advantages = torch.randn(B, generator=generator, dtype=torch.float64)
    advantages[B // 2] = 0
    signals = Signals(
        response_mask=mask,
        group_ids=torch.arange(B) // 2,
        visual_rows=visual_rows,
        progress=torch.full((B,), 0.25, dtype=torch.float64),
        **values,
    )
    return advantages, signals


def shape(name: str, advantages: torch.Tensor, signals: Signals, **options: object) -> Shaped:
    shaping = build_shaping(name, options)
    unseen = {signal: None for signal in (*PER_TOKEN, "progress") if signal not in shaping.signals}
    return shaping.shape(advantages, dataclasses.replace(signals, **unseen))


def looped(name: str, advantages: torch.Tensor, signals: Signals, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """By plain loops; `dtype` is that in which log-probabilities were rounded."""
    numbers, places = advantages.tolist(), naive.judged_tokens(signals.response_mask, signals.visual_rows)
    seen, eps = signals.log_probs, torch.finfo(dtype).eps
    rows = {
        "entropy": lambda: naive.entropy(numbers, signals.entropy, signals.response_mask, 0.4, 2.0),
        "kl_perception": lambda: naive.kl_perception(
            numbers, seen, signals.corrupted_log_probs, places, "0.4", 0.9, eps
        ),
        "pgpo": lambda: naive.pgpo(numbers, seen, signals.text_only_log_probs, places, 0.4, 2.0, eps),
        "pepo": lambda: naive.pepo(
            numbers, signals.layer_similarity, signals.entropy, places, float(signals.progress[0]), 0.05, 1.0
        ),
    }
    return torch.tensor(rows[name](), dtype=torch.float64)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize(("B", "T"), [(1, 1), (2, 5), (4, 1), (5, 13), (8, 31)])
def test_against_loops(name, B, T):
    advantages, signals = case(B, T)
    shaped = shape(name, advantages, signals)
    torch.testing.assert_close(shaped.advantages, looped(name, advantages, signals), atol=1e-6, rtol=0)
    assert shaped.advantages.isfinite().all()
    for value in shaped.diagnostics.values():
        assert value.isfinite().all()
    for ratio in shaped.statistics.values():
        assert ratio.total.isfinite()


@pytest.mark.parametrize("name", RIVALS)
def test_float32_and_bfloat16_are_computed_in_float32(name):
    advantages, signals = case(6, 9)
    for dtype in (torch.float32, torch.bfloat16):
        rounded = {
            signal: vars(signals)[signal].to(dtype) for signal in PER_TOKEN if vars(signals)[signal] is not None
        }
        given = dataclasses.replace(signals, progress=signals.progress.float(), **rounded)
        shaped = shape(name, advantages.float(), given).advantages
        assert shaped.dtype == torch.float32
        exact = dataclasses.replace(signals, **{signal: value.double() for signal, value in rounded.items()})
        torch.testing.assert_close(shaped.double(), looped(name, advantages, exact, dtype), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RIVALS)
def test_order_of_rows_and_padding_change_nothing(name):
    advantages, signals = case(7, 11)
    shaped = shape(name, advantages, signals).advantages
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    wide = {signal: torch.nn.functional.pad(vars(signals)[signal], (0, 4), value=NAN) for signal in PER_TOKEN
            if vars(signals)[signal] is not None}  # fmt: skip
    wide["response_mask"] = torch.nn.functional.pad(signals.response_mask, (0, 4))
    rows = {"group_ids": signals.group_ids, "visual_rows": signals.visual_rows, "progress": signals.progress}
    moved = Signals(**{signal: value[order] for signal, value in {**wide, **rows}.items()})
    found = shape(name, advantages[order], moved).advantages
    torch.testing.assert_close(found[:, :11], shaped[order], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("name", "options"), [("entropy", {}), ("kl_perception", {"inter": False}), ("pgpo", {}), ("pepo", {})]
)
def test_a_rollout_by_itself_is_shaped_as_among_others(name, options):
    assert build_shaping(name, options).scope == "rollout"
    advantages, signals = case(6, 9)
    together = shape(name, advantages, signals, **options).advantages
    for i in range(6):
        row = slice(i, i + 1)
        alone = Signals(**{field: value[row] for field, value in vars(signals).items() if value is not None})
        torch.testing.assert_close(shape(name, advantages[row], alone, **options).advantages, together[row])


def test_rollout_factors_look_at_the_whole_batch():
    assert build_shaping("kl_perception", {}).scope == "batch"


@pytest.mark.parametrize("name", RIVALS)
def test_no_advantage_stays_none_and_tokens_that_are_not_the_policys_keep_theirs(name):
    advantages, signals = case(6, 9)
    shaped = shape(name, advantages, signals).advantages
    assert shaped[3].eq(0).all()
    off = ~signals.response_mask
    assert torch.equal(shaped[off], advantages[:, None].expand(6, 9)[off])


@pytest.mark.parametrize("name", ["kl_perception", "pgpo", "pepo"])
def test_rows_without_a_picture_keep_the_base_advantage_and_change_no_other(name):
    advantages, signals = case(8, 9)
    shaped = shape(name, advantages, signals)
    for i in (3, 7):
        assert torch.equal(shaped.advantages[i], advantages[i].expand(9))
        assert shaped.diagnostics["token_factor"][i].eq(1).all()
    rows = signals.visual_rows
    others = Signals(**{field: value[rows] for field, value in vars(signals).items() if value is not None})
    torch.testing.assert_close(shape(name, advantages[rows], others).advantages, shaped.advantages[rows])


@pytest.mark.parametrize("name", ["kl_perception", "pgpo", "pepo"])
def test_a_batch_without_pictures_is_the_base(name):
    advantages, signals = case(4, 5)
    blind = dataclasses.replace(signals, visual_rows=torch.zeros(4, dtype=torch.bool))
    assert torch.equal(shape(name, advantages, blind).advantages, advantages[:, None].expand(4, 5))


def test_entropy_by_hand():
    # A = 1: min(0.4 * 0.5, 0.5) = 0.2, min(0.4 * 2, 0.5) = 0.5. A = -1 moves towards 0 and stops halfway.
    found = entropy_advantages(
        torch.tensor([1.0, -1.0, 0.0]),
        torch.tensor([[0.5, 2.0], [0.5, 2.0], [0.5, 2.0]]),
        torch.ones(3, 2, dtype=torch.bool),
        EntropySettings(),
    )
    torch.testing.assert_close(found, torch.tensor([[1.2, 1.5], [-0.8, -0.5], [0.0, 0.0]]))


def test_entropy_never_flips_a_sign():
    advantages = torch.tensor([1e-30, -1e-30, 3.0, -3.0])
    found = entropy_advantages(
        advantages, torch.full((4, 1), 1e6), torch.ones(4, 1, dtype=torch.bool), EntropySettings(bonus_divisor=1.01)
    )
    assert torch.equal(found[:, 0].sign(), advantages.sign())


def test_dependency_by_hand():
    # d = log 2: 2 - log 2 - 1. d = -log 2: 1/2 + log 2 - 1. d = 0: 0. d = 30: e^20 is beyond 10. d = -30: 19 is, too.
    seen = torch.tensor([[-3.0, -3.0, -3.0, -30.0, -1.0, NAN]], dtype=torch.float64)
    damaged = torch.tensor([[-3 + math.log(2), -3 - math.log(2), -3.0, 0.0, -31.0, 1.0]], dtype=torch.float64)
    scored_mask = torch.tensor([[True, True, True, True, True, False]])
    expected = torch.tensor([[1 - math.log(2), math.log(2) - 0.5, 0.0, 10.0, 10.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(token_dependency(seen, damaged, scored_mask), expected)


def test_small_dependencies_are_not_rounded_away():
    ratio = torch.tensor([[1e-3]])
    found = token_dependency(torch.zeros(1, 1), ratio, torch.tensor([[True]]))
    assert float(found) == pytest.approx(5.0017e-7, rel=1e-4)  # d^2 / 2 + d^3 / 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [-0.01, -1.0, -12.0])
def test_log_probabilities_that_differ_by_rounding_alone_show_no_dependency(dtype, level):
    """Two orders of one sum do; scaled to [0, 1] that would be weights of full range, others in each division."""
    noise = torch.randint(-8, 9, (3, 20), generator=torch.Generator().manual_seed(0))
    seen = torch.full((3, 20), level, dtype=dtype)
    ulp = torch.finfo(dtype).eps * max(1.0, -level)
    damaged = seen + noise * ulp
    damaged[2] -= torch.linspace(0.1, 1, 20)
    assert not torch.equal(damaged[:2], seen[:2])
    given = Signals(
        response_mask=torch.ones(3, 20, dtype=torch.bool), group_ids=torch.zeros(3, dtype=torch.int64),
        visual_rows=torch.ones(3, dtype=torch.bool), log_probs=seen,
    )  # fmt: skip
    advantages = torch.ones(3, dtype=dtype)
    grounded = build_shaping("pgpo", {}).shape(advantages, dataclasses.replace(given, text_only_log_probs=damaged))
    assert grounded.advantages[:2].eq(1).all()
    assert grounded.advantages[2].std() > 0.5
    kept = build_shaping("kl_perception", {"inter": False}).shape(
        advantages, dataclasses.replace(given, corrupted_log_probs=damaged)
    )
    assert kept.advantages[:2, :8].eq(1).all()  # of equal tokens the earlier ones
    assert kept.advantages[2, 12:].eq(1).all()
    scored_mask = given.response_mask[:2]
    assert dependency_factor(token_dependency(seen[:2], damaged[:2], scored_mask), scored_mask, 0.9).tolist() == [1, 1]


def test_log_probabilities_that_are_not_finite_do_not_pass_for_rounding():
    seen = torch.tensor([[-1.0, -1.0, -math.inf]])
    damaged = torch.tensor([[-math.inf, NAN, -1.0]])
    found = token_dependency(seen, damaged, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(found, torch.tensor([[10.0, NAN, 10.0]]), equal_nan=True)


@pytest.mark.parametrize(("length", "kept"), [(1, 1), (2, 1), (3, 2), (5, 2), (6, 3), (10, 4), (15, 6)])
def test_two_fifths_of_a_response_are_kept_rounded_up(length, kept):
    dependency = torch.rand(1, length, generator=torch.Generator().manual_seed(length))
    tokens = pivotal_tokens(dependency, torch.ones(1, length, dtype=torch.bool), 0.4)
    assert int(tokens.sum()) == kept
    assert dependency[tokens].min() >= dependency[~tokens].max() if kept < length else True


def test_of_equal_tokens_the_earlier_are_kept():
    dependency = torch.tensor([[0.0, 5.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    scored_mask = torch.tensor([[True, True, True, True, True], [False, True, True, False, True]])
    expected = torch.tensor([[False, True, True, False, False], [False, True, True, False, False]])
    assert torch.equal(pivotal_tokens(dependency, scored_mask, 0.4), expected)


def test_rollout_factors_by_hand():
    # Means 1, 2, 4 scale to 0, 1/3, 1, which average 4/9: b_max - 0.9 = 0.1 * 9/4.
    dependency = torch.tensor([[1.0, 1.0], [1.0, 3.0], [4.0, 0.0], [9.0, 9.0]], dtype=torch.float64)
    scored_mask = torch.tensor([[True, True], [True, True], [True, False], [False, False]])
    factor = dependency_factor(dependency.masked_fill(~scored_mask, 0), scored_mask, 0.9)
    expected = torch.tensor([0.9, 0.9 + 0.075, 0.9 + 0.225, 1.0], dtype=torch.float64)
    torch.testing.assert_close(factor, expected, atol=1e-7, rtol=0)
    assert float(factor[:3].mean()) == pytest.approx(1)


@pytest.mark.parametrize("least", [0.5, 0.9, 1.0])
def test_rollout_factors_average_one(least):
    advantages, signals = case(9, 7)
    shaped = shape("kl_perception", advantages, signals, least_factor=least)
    factor = shaped.diagnostics["rollout_factor"][signals.visual_rows]
    assert float(factor.mean()) == pytest.approx(1)
    assert float(factor.min()) == pytest.approx(least)


def test_rollouts_of_equal_dependency_have_factor_one():
    # Sums of the same numbers in another order differ by rounding.
    row = torch.rand(40, generator=torch.Generator().manual_seed(0))
    factor = dependency_factor(torch.stack([row, row.flip(0)]), torch.ones(2, 40, dtype=torch.bool), 0.9)
    assert factor.tolist() == [1, 1]


def test_grains_of_kl_perception_by_themselves():
    advantages, signals = case(6, 9)
    none = shape("kl_perception", advantages, signals, intra=False, inter=False)
    assert build_shaping("kl_perception", {"intra": False, "inter": False}).signals == frozenset()
    assert torch.equal(none.advantages, advantages[:, None].expand(6, 9))
    tokens = shape("kl_perception", advantages, signals, inter=False)
    rollouts = shape("kl_perception", advantages, signals, intra=False)
    assert tokens.diagnostics["rollout_factor"].eq(1).all()
    assert rollouts.diagnostics["token_factor"].eq(1).all()
    both = shape("kl_perception", advantages, signals)
    factor = tokens.diagnostics["token_factor"] * rollouts.diagnostics["rollout_factor"][:, None]
    scored_mask = signals.scored_mask
    torch.testing.assert_close(both.advantages[scored_mask], (advantages[:, None] * factor)[scored_mask])


def test_pgpo_by_hand():
    # log(1 + s) = 0, 1, 2, 5 scale to 0, 0.2, 0.4, 1. Below 0.4: 0, 0.5. From 0.4 on: 1, 3. They sum to 4.5, not 4.
    dependency = torch.tensor([[0.0, 1.0, 2.0, 5.0]], dtype=torch.float64).expm1()
    weight = grounded_weight(dependency, torch.ones(1, 4, dtype=torch.bool), PGPOSettings())
    expected = torch.tensor([[0.0, 0.5, 1.0, 3.0]], dtype=torch.float64) * 4 / 4.5
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)


def test_pgpo_keeps_the_sum_of_a_response_and_is_one_where_nothing_differs():
    advantages, signals = case(6, 9)
    factor = shape("pgpo", advantages, signals).diagnostics["token_factor"]
    torch.testing.assert_close((factor * signals.response_mask).sum(1), signals.response_mask.sum(1).double())
    scored_mask = torch.ones(2, 3, dtype=torch.bool)
    assert grounded_weight(torch.full((2, 3), 0.7), scored_mask, PGPOSettings()).eq(1).all()


def test_pepo_by_hand():
    # VS^ = 0, 1 and H^ = 0, 1: g = -1, 1. Logits (1 -+ 0.05 tanh 1) VS.
    gate = 0.05 * math.tanh(1)
    powers = [math.exp((1 - gate) * 0.2), math.exp((1 + gate) * 0.6)]
    weight = perception_weight(
        torch.tensor([[0.2, 0.6]], dtype=torch.float64),
        torch.tensor([[1.0, 2.0]], dtype=torch.float64),
        torch.ones(1, 2, dtype=torch.bool),
        PEPOSettings(),
    )
    expected = torch.tensor([[2 * power / sum(powers) for power in powers]], dtype=torch.float64)
    torch.testing.assert_close(weight, expected, atol=1e-7, rtol=0)


def test_pepo_grows_in_with_training():
    advantages, signals = case(6, 9)
    at = {
        done: shape("pepo", advantages, dataclasses.replace(signals, progress=torch.full((6,), done))).advantages
        for done in (0.0, 0.5, 1.0)
    }
    base = advantages[:, None].expand(6, 9)
    torch.testing.assert_close(at[0.0], base)
    torch.testing.assert_close(at[0.5], (base + at[1.0]) / 2)
    assert not torch.allclose(at[1.0], base)
    assert "progress" not in build_shaping("pepo", {"gradual": False}).signals
    torch.testing.assert_close(shape("pepo", advantages, signals, gradual=False).advantages, at[1.0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("entropy", {"entropy_weight": -0.1}, "entropy_weight is -0.1, expected a number >= 0"),
        ("entropy", {"bonus_divisor": 1.0}, "bonus_divisor is 1.0, expected a number > 1"),
        ("kl_perception", {"keep_ratio": 0}, "keep_ratio is 0, expected a number > 0 and <= 1"),
        ("kl_perception", {"least_factor": 1.1}, "least_factor is 1.1"),
        ("kl_perception", {"intra": False, "keep_ratio": 0.2}, "keep_ratio=0.2 has no effect with intra=False"),
        ("kl_perception", {"inter": False, "least_factor": 0.5}, "least_factor=0.5 has no effect with inter=False"),
        ("kl_perception", {"intra": "no"}, "intra is 'no', expected one of True, False"),
        ("pgpo", {"threshold": 1}, "threshold is 1, expected a number below 1"),
        ("pgpo", {"boost": NAN}, "boost is nan"),
        ("pepo", {"gate_weight": 2}, "gate_weight is 2"),
        ("pepo", {"softmax_temperature": 0}, "softmax_temperature is 0, expected a number > 0"),
        ("pepo", {"alpha": 0.1}, "shaping 'pepo' has no option 'alpha'"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        build_shaping(name, options)


@pytest.mark.parametrize("name", RIVALS)
def test_no_setting_has_the_name_of_another_thing_in_the_configuration(name):
    """A shared name would take its value from there: the `beta` of a rival would be the KL term's."""
    settings = {field.name for field in dataclasses.fields(type(build_shaping(name, {})).Settings)}
    configuration = {field.name for field in dataclasses.fields(VGPOConfig)}
    assert settings & configuration <= {"intra", "inter"}
