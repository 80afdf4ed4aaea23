import re

import numpy as np
import pytest

from vgpo.toy import QUESTION_KINDS, TaskSettings, draw_question, load_scans, parse_task, render
from vgpo.toy.model import build_tokenizer

DIALS = [
    TaskSettings(),
    TaskSettings(rows=1, columns=1, digits=(3, 8)),
    TaskSettings(rows=4, columns=4),
    TaskSettings(rows=2, columns=3, digits=(1, 3, 4, 7, 9), kinds=("count",)),
]


@pytest.fixture(scope="module")
def test_scans():
    return load_scans("test")


def draw(settings, scans, number=60):
    rng = np.random.default_rng(0)
    return [draw_question(rng, scans, settings) for _ in range(number)]


def answer_from(labels, problem):
    """The answer computed again from the digits in the image and the words of the question."""
    if found := re.fullmatch(r"<image>How many (\d)s are in the picture\?", problem):
        return labels.flatten().tolist().count(int(found[1]))
    if found := re.fullmatch(r"<image>What is the sum of row (\d)\?", problem):
        return sum(labels[int(found[1]) - 1].tolist())
    assert problem == "<image>What is the largest digit in the picture?"
    return max(labels.flatten().tolist())


def test_no_scan_is_on_both_sides_of_the_split():
    train, test = load_scans("train"), load_scans("test")
    assert (len(train.labels), len(test.labels)) == (1400, 397)
    seen = {scan.tobytes() for scan in train.pixels}
    assert not any(scan.tobytes() in seen for scan in test.pixels)


def test_split_must_be_train_or_test():
    with pytest.raises(ValueError, match="split is 'dev'; expected 'train' or 'test'"):
        load_scans("dev")


@pytest.mark.parametrize("settings", DIALS)
def test_answers_agree_with_the_picture(settings, test_scans):
    for question in draw(settings, test_scans):
        labels = test_scans.labels[question.scans]
        assert set(labels.flatten()) <= set(settings.digits)
        assert question.answer == str(answer_from(labels, question.problem))
        assert question.chain.endswith(f"</think>\\boxed{{{question.answer}}}")


@pytest.mark.parametrize("settings", DIALS)
def test_chains_read_the_picture(settings, test_scans):
    for question in draw(settings, test_scans):
        labels = test_scans.labels[question.scans]
        rows = re.findall(r"row (\d): ([\d ]+),", question.chain)
        assert len(rows) == (1 if question.kind == "row_sum" else settings.rows)
        for row, digits in rows:
            assert digits.split() == [str(digit) for digit in labels[int(row) - 1]]


def test_forgetful_chain_reads_the_first_row_alone_and_answers_from_it(test_scans):
    questions = draw(TaskSettings(kinds=("count", "largest")), test_scans)
    for question in questions:
        labels = test_scans.labels[question.scans][:1]
        reading = question.chain[: question.chain.index(" row 2:")]
        answer = str(answer_from(labels, question.problem))
        noun = "total" if question.kind == "count" else "largest"
        assert question.forgetful == f"{reading} {noun} {answer}</think>\\boxed{{{answer}}}"
    wrong = [q for q in questions if not q.forgetful.endswith(f"{{{q.answer}}}")]
    assert 0.4 < len(wrong) / len(questions) < 0.9


@pytest.mark.parametrize("settings", DIALS)
def test_chains_and_problems_round_trip_through_the_tokenizer(settings, test_scans):
    tokenizer = build_tokenizer()
    for question in draw(settings, test_scans):
        for text in (question.chain, question.forgetful, question.problem):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
        # One token a word: a header, the digits, ",", a summary and "." for each row, then 7 more.
        longest = settings.rows * (settings.columns + 4) + 7
        assert len(tokenizer(question.chain)["input_ids"]) <= longest


@pytest.mark.parametrize(
    "text", ["héllo 汉字 🙂", "<b>&amp;</b>", "row 9: 123456", "  two  spaces\n\ttab", "\\boxed{\\frac{1}{2}}"]
)
def test_tokenizer_spells_any_text(text):
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_picture_shows_the_scans_in_their_cells(test_scans):
    question = draw(TaskSettings(rows=2, columns=3), test_scans, number=1)[0]
    image = render(question, test_scans)
    assert (image.size, image.mode) == ((84, 56), "RGB")
    cell = np.asarray(image)[28:56, 28:56, 1]  # row 2, column 2
    np.testing.assert_array_equal(cell, test_scans.pixels[question.scans[1, 1]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": 0}, "rows is 0; expected 1 to 4"),
        ({"columns": 5}, "columns is 5; expected 1 to 4"),
        ({"digits": (7,)}, "at least two digits"),
        ({"digits": (7, 7)}, "each named once"),
        ({"digits": (3, 10)}, "expected digits from 0 to 9"),
        ({"kinds": ()}, "at least one question kind"),
        ({"kinds": ("count", "count")}, "each named once"),
        ({"kinds": ("smallest",)}, "kinds names 'smallest'; expected some of count, largest, row_sum"),
    ],
)
def test_difficulty_dial_rejects(values, message):
    with pytest.raises(ValueError, match=message):
        TaskSettings(**values)


def test_every_kind_is_asked(test_scans):
    assert {question.kind for question in draw(TaskSettings(), test_scans)} == set(QUESTION_KINDS)


def test_the_dial_as_one_word() -> None:
    assert parse_task("rows=4,kinds=count+largest") == TaskSettings(rows=4, kinds=("count", "largest"))
    assert parse_task("digits=1+3,columns=2") == TaskSettings(digits=(1, 3), columns=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found ''"),
        ("row=4", "found 'row=4' in 'row=4'; expected each of rows, columns, digits, kinds, setting"),
        ("rows=4,rows=3", "found 'rows=3'"),
        ("rows=four", "rows takes a whole number"),
        ("rows=9", "rows is 9; expected 1 to 4"),
        ("kinds=sum", "kinds names 'sum'"),
    ],
)
def test_a_dial_that_does_not_fit_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_task(text)
