"""The script that explains a study: roles of tokens, how well signals separate them, where wrong answers come from."""

import random

import pytest
from studies.why import GO_ON, GUESS, READ, Response, Token, area_under_curve, outcome, roles, separation_table

CHAIN = "<think>row 1: 7 4 3, 1. row 2: 1 9 9, 0. total 2</think>\\boxed{2}"
TEXTS = ["<think>", "row 1:", " 7", " 4", " 3", ",", " 1", ".", " row 2:", " 1", " 9", " 9", ",", " 0", ".", " total",
         " 2", "</think>", "\\boxed{", "2", "}"]  # fmt: skip


def test_roles_of_a_chain() -> None:
    expected = ["frame", GO_ON, READ, READ, READ, "punctuation", "working", "punctuation"]
    expected += [GO_ON, READ, READ, READ, "punctuation", "working", "punctuation"]
    expected += [GO_ON, "answer", "frame", "frame", "answer", "frame"]
    assert roles(TEXTS) == expected


def test_words_in_place_of_digits_are_a_guess() -> None:
    texts = [
        "<think>",
        "row 2:",
        " 7",
        " 4",
        ",",
        " 7",
        ".",
        " row 3:",
        " much",
        " the",
        " same",
        ".",
        " that",
        "</think>",
    ]
    expected = ["frame", GO_ON, READ, READ, "punctuation", "working", "punctuation"]
    expected += [GO_ON, GUESS, GUESS, GUESS, "punctuation", "frame", "frame"]
    assert roles(texts) == expected


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    draw = random.Random(0)
    pairs = [(draw.choice([0.1, 0.2, 0.3, 0.4]), draw.random() < 0.3) for _ in range(60)]
    order = [(a > b) + 0.5 * (a == b) for a, needed in pairs if needed for b, other in pairs if not other]
    assert area_under_curve(pairs) == pytest.approx(sum(order) / len(order))


def test_a_signal_is_judged_at_the_token_and_at_the_one_before() -> None:
    # High before each digit that is read, and nowhere else.
    found = roles(TEXTS)
    values = [float(following == READ) for following in [*found[1:], "frame"]]
    tokens = [Token(text, role, {"s": value}, {}) for text, role, value in zip(TEXTS, found, values, strict=True)]
    table = separation_table([Response("", 2, CHAIN, tokens, True)])
    assert table.splitlines()[-1].startswith("| s | 0.")
    assert table.splitlines()[-1].endswith("| 1.00 |")


@pytest.mark.parametrize(
    ("problem", "text", "correct", "expected"),
    [
        ("How many 9s are in the picture?", CHAIN, True, "right"),
        ("How many 9s are in the picture?", CHAIN, False, "wrong: all rows read, a digit or a step is wrong"),
        ("How many 9s are in the picture?", "<think>row 1: 7 4 3, 0. total 0</think>", False, "wrong: rows left out"),
        ("What are the largest digits of rows 2 to 3?", "row 2: 7 4, 7. row 3: much the same as.", False,
         "wrong: a row guessed"),
        ("What are the largest digits of rows 2 to 3?", "row 2: 7 4, 7. row 3: 1 2, 2.", False,
         "wrong: all rows read, a digit or a step is wrong"),
        ("What are the largest digits of row 2?", "row 2: 7 4, 4.", False,
         "wrong: all rows read, a digit or a step is wrong"),
        ("What is the sum of row 2?", "<think>row 2: 7 4 3, 11 13.</think>", False,
         "wrong: all rows read, a digit or a step is wrong"),
    ],
)  # fmt: skip
def test_where_wrong_answers_come_from(problem: str, text: str, correct: bool, expected: str) -> None:
    assert outcome(Response(problem, 2, text, [], correct)) == expected
