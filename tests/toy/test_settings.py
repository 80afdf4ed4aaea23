"""What the image is worth: in each setting the answers are worked out again from the image and the words."""

import dataclasses
import hashlib
import re

import numpy as np
import pytest

from vgpo.toy import TaskSettings, draw_question, load_scans, parse_task
from vgpo.toy.model import build_tokenizer
from vgpo.toy.scans import font_digits

ROWS = re.compile(r"row (\d): ([\d ]+)\.")
GRID = {"rows": 4, "kinds": ("count", "largest")}


@pytest.fixture(scope="module")
def scans():
    return load_scans("test")


def draw(settings, scans, number=80, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_question(rng, scans, settings) for _ in range(number)]


def written_rows(problem):
    """The rows that a question writes out: number from 0 -> digits."""
    return {int(row) - 1: [int(digit) for digit in digits.split()] for row, digits in ROWS.findall(problem)}


def true_grid(question, scans):
    """The image's digits with the corrections of the question."""
    grid = scans.labels[question.scans].copy()
    for row, digits in written_rows(question.problem).items():
        grid[row] = digits
    return grid


def answer_from(grid, problem):
    if found := re.search(r"How many (\d)s", problem):
        return str((grid == int(found[1])).sum())
    if found := re.search(r"largest digits of rows? (\d)(?: to (\d))?\?", problem):
        first, last = int(found[1]), int(found[2] or found[1])
        return " ".join(str(max(row)) for row in grid[first - 1 : last])
    return str(grid.max())


@pytest.mark.parametrize("setting", ["image", "text", "misleading", "forgetting", "mixed"])
def test_answers_agree_with_image_and_words(setting, scans):
    questions = draw(TaskSettings(setting=setting, **GRID), scans)
    for question in questions:
        grid = true_grid(question, scans)
        assert question.answer == answer_from(grid, question.problem)
        assert question.chain.endswith(f"</think>\\boxed{{{question.answer}}}")
        for row, digits, largest in re.findall(r"row (\d): ([\d ]+), (\d)\.", question.chain):
            assert [int(digit) for digit in digits.split()] == grid[int(row) - 1].tolist()
            if question.setting == "forgetting":
                assert int(largest) == grid[int(row) - 1].max()
    drawn_from = {"image", "text", "misleading", "forgetting"} if setting == "mixed" else {setting}
    assert {question.setting for question in questions} == set(TaskSettings(setting=setting).strata) == drawn_from


def test_text_writes_all_rows_out_as_they_are_in_the_image(scans):
    for question in draw(TaskSettings(setting="text", **GRID), scans):
        labels = scans.labels[question.scans]
        assert written_rows(question.problem) == {row: digits.tolist() for row, digits in enumerate(labels)}


def test_misleading_corrects_some_rows_and_the_habit_ignores_it(scans):
    answers_differ = []
    for question in draw(TaskSettings(setting="misleading", **GRID), scans):
        assert 1 <= len(written_rows(question.problem)) <= 3
        habit = answer_from(scans.labels[question.scans], question.problem)
        assert question.forgetful.endswith(f"\\boxed{{{habit}}}")
        answers_differ.append(habit != question.answer)
    assert 0.3 < np.mean(answers_differ) < 0.9


def test_a_drifting_chain_has_the_length_of_one_that_looks(scans):
    tokenizer = build_tokenizer(more_words=True)
    drifted = 0
    for question in draw(TaskSettings(setting="forgetting", rows=4), scans):
        length, habit = (len(tokenizer(text)["input_ids"]) for text in (question.chain, question.forgetful))
        assert length == habit <= 45
        assert re.search(r"<think>row \d: [\d ]+,", question.forgetful)  # the first row is always looked at
        drifted += "much the same" in question.forgetful
    assert 30 < drifted < 75


@pytest.mark.parametrize("setting", ["text", "misleading", "forgetting"])
def test_all_texts_are_words_of_the_tokenizer(setting, scans):
    tokenizer = build_tokenizer(more_words=True)
    letters = re.compile(r"^[A-Za-z]$")
    for question in draw(TaskSettings(setting=setting, **GRID), scans):
        for text in (question.problem.removeprefix("<image>"), question.chain, question.forgetful):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert not [token for token in tokenizer.convert_ids_to_tokens(ids) if letters.match(token)]


def test_more_words_keep_the_ids_of_the_others():
    few, many = build_tokenizer().get_vocab(), build_tokenizer(more_words=True).get_vocab()
    assert few.items() <= many.items()


@pytest.mark.parametrize("setting", ["image", "misleading", "forgetting"])
def test_one_edited_digit_changes_the_answer(setting, scans):
    plain = TaskSettings(setting=setting, **GRID)
    edited = dataclasses.replace(plain, edited=True)
    num_other = 0
    for seed in range(60):
        before = draw_question(np.random.default_rng(seed), scans, plain)
        after = draw_question(np.random.default_rng(seed), scans, edited)
        if after.problem != before.problem:  # no digit could change the answer to the first question
            num_other += 1
            continue
        changed = scans.labels[after.scans] != scans.labels[before.scans]
        assert changed.sum() == 1
        assert (after.scans != before.scans).sum() == 1
        assert after.answer == answer_from(true_grid(after, scans), after.problem) != before.answer
        if setting == "misleading":
            assert not set(np.flatnonzero(changed.any(axis=1))) & set(written_rows(after.problem))
    assert num_other <= 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"setting": "blind"}, "setting is 'blind'; expected one of image, text, misleading, forgetting, mixed"),
        ({"glyphs": "runes"}, "glyphs is 'runes'; expected one of scans, font"),
        ({"setting": "text", "edited": True}, "edited has no effect with setting text"),
        ({"setting": "misleading", "rows": 1}, "rows is 1; expected at least 2 with setting misleading"),
    ],
)
def test_settings_that_do_not_fit_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        TaskSettings(**values)


def test_settings_are_parsed():
    found = parse_task("setting=forgetting,rows=4,edited=true,glyphs=font")
    assert found == TaskSettings(setting="forgetting", rows=4, edited=True, glyphs="font")
    with pytest.raises(ValueError, match="edited takes true or false"):
        parse_task("edited=yes")


def test_font_has_every_digit_on_black():
    font = font_digits()
    assert sorted(set(font.labels)) == list(range(10))
    assert font.pixels.shape[1:] == (28, 28)
    assert (font.pixels.max(axis=(1, 2)) > 200).all()
    assert (font.pixels[:, :, 0] == 0).all()


def test_questions_about_images_alone_are_those_of_version_0_1(scans):
    """The data of the packaged weights: same questions, same images."""
    questions = draw(TaskSettings(), scans, number=200)
    text = "\n".join(f"{q.problem} {q.answer} {q.chain} {q.forgetful} {q.scans.tolist()}" for q in questions)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "8383c4586202662408c4d3108fc230f7e28469b40c9546c3a11e3422cf4d3dc1"
    )
