"""The script behind figures of docs/results.md, by hand-computed numbers."""

from studies.dynamics import differences, equal_tokens, in_steps, last_accuracy, logged


def step(method: str, seed: int, number: int, accuracy: float) -> dict[str, str]:
    return {"method": method, "seed": str(seed), "step": str(number), "accuracy": str(accuracy)}


STEPS = [
    step(method, seed, number, 0.5 + 0.1 * (method == "vgpo") * (seed + 1))
    for method in ("dapo", "vgpo") for seed in (0, 1) for number in (1, 2, 11)
]  # fmt: skip


def test_means_over_steps_by_method_and_seed():
    steps = [*STEPS, step("dapo", 0, 3, 0.8)]
    assert in_steps(steps, "accuracy", 2, 3)["dapo"] == {0: 0.65, 1: 0.5}
    assert in_steps(steps, "accuracy", 11, 20)["dapo"] == {0: 0.5, 1: 0.5}


def test_differences_are_paired_by_seed():
    runs = [{"method": m, "seed": s, "accuracy_on_x": "0.25"} for m in ("dapo", "vgpo") for s in ("0", "1")]
    *_, row = differences(STEPS, runs).splitlines()
    # Resamples of 10 and 20: 10, 15, 15, 20; the outer quantiles are 3 x 0.025 of the way from one to the next.
    assert row.startswith("| vgpo | +15.0 [+10.4, +19.6], p 0.500 | +0.0 ")


def test_held_out_sets_of_other_settings_have_no_column():
    runs = [
        {"method": m, "seed": s, "accuracy_on_x": "0.25", "accuracy_on_of_another_setting": ""}
        for m in ("dapo", "vgpo") for s in ("0", "1")
    ]  # fmt: skip
    heads, *_ = differences(STEPS, runs).splitlines()
    assert heads.endswith("| accuracy, 1 to 10 | x |")


def test_accuracy_at_equal_tokens_reads_no_step_beyond_them():
    accuracies = [0.0, 0.1, 0.2, 0.3, 0.4, 0.9]
    run = [{**step("dapo", 0, i, one), "tokens": str(10 * i)} for i, one in enumerate(accuracies, start=1)]
    assert last_accuracy(run, 50) == 0.25  # steps 2 to 5
    assert abs(last_accuracy(run, 60) - 0.45) < 1e-12
    shorter = [{**row, "method": "vgpo"} for row in run[:5]]
    *_, row = equal_tokens([{**row, "seed": seed} for seed in "01" for row in (*run, *shorter)]).splitlines()
    assert row.startswith("| vgpo | +0.0 [+0.0, +0.0]")


def test_logged_figures_are_means_over_seeds_and_steps():
    empty = dict.fromkeys(("positive_mass", "compensation", "strength_a"), "")
    steps = [{**one, **empty} for one in STEPS if one["method"] == "dapo" and int(one["step"]) <= 10]
    steps += [
        {**step("vgpo", seed, number, 0.5), **empty, "positive_mass": str(1 + seed), "strength_a": str(number / 10)}
        for seed in (0, 1) for number in range(1, 11)
    ]  # fmt: skip
    head, _, dapo, vgpo = logged(steps).splitlines()
    assert head.endswith("| strength_a | strength_a, last tenth |")
    assert dapo == "| dapo | – | – | – | – | – | – |"
    assert vgpo == "| vgpo | 1.500 | – | – | – | 0.550 | 1.000 |"
