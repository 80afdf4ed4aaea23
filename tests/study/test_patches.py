"""The script that asks whether the brightest patch is the one that is read."""

from studies.patches import brightest, reads

TOKENS = ["<think>", "row 1:", " 7", " 4", ",", " 1", ".", " row 2:", " 1", " 9", ",", " 0", ".", " total", " 2"]


def test_places_of_the_digits_that_are_read() -> None:
    assert list(reads(TOKENS)) == [(2, 0, 0), (3, 0, 1), (8, 1, 0), (9, 1, 1)]


def test_the_brightest_patch_at_a_token_and_before_it() -> None:
    highest = {1: 3, 2: 0, 3: 2, 7: 1, 8: 2, 9: 3}
    rollout = {"tokens": TOKENS, "patches": {"peaks": [[highest.get(place, 0)] for place in range(len(TOKENS) + 1)]}}
    grid = {"rows": 2, "columns": 2, "tokens": [0, 1, 2, 3]}
    assert list(brightest(rollout, grid)) == [(0, 3, 0), (2, 0, 1), (2, 1, 2), (3, 2, 3)]
