import logging
from pathlib import Path

import datasets
import pytest

from vgpo.data import DataError, check_dataset


def row(png, problem="<image>How many?", answer="7", images=None) -> dict:
    return {"images": [png()] if images is None else images, "problem": problem, "answer": answer}


def test_a_sound_set_passes(png, make_dataset, capfd) -> None:
    rows = [
        row(png),
        row(png, problem="no mark at all", images=[png(), png()]),
        row(png, problem="<image 1> or <image_2>?", images=[png(), png()]),
        row(png, problem="text only", images=[]),
    ]
    check_dataset(make_dataset(rows))
    assert capfd.readouterr().err == ""


def test_undecoded_structs_integers_and_single_pictures_pass(png) -> None:
    rows = [{"images": {"bytes": png(), "path": None}, "problem": "<image>How many?", "answer": 7}]
    check_dataset(datasets.Dataset.from_list(rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": ""}, "row 1, field 'problem': empty; expected the question. Fill it or drop the row"),
        ({"problem": " \n"}, "row 1, field 'problem': empty"),
        ({"problem": None}, "row 1, field 'problem': empty"),
        ({"answer": " "}, "row 1, field 'answer': empty; expected a checkable answer. Fill it or drop the row"),
        ({"answer": None}, "row 1, field 'answer': empty"),
        ({"problem": "<image><image>Which?"}, "row 1, field 'problem': 2 <image> placeholders but 1 in field"),
        (
            {"images": []},
            "row 1, field 'problem': 1 <image> placeholder but 0 in field 'images'; expected equal",
        ),
        ({"images": None}, "row 1, field 'problem': 1 <image> placeholder but 0 in field 'images'"),
        ({"images": [b"junk"]}, "row 1, field 'images', image 0: the image with path None and 4 bytes cannot be"),
        ({"images": ["gone.png"]}, "row 1, field 'images', image 0: there is no image file gone.png; correct"),
        ({"images": [None]}, "row 1, field 'images', image 0: the image of type NoneType is of an unknown type"),
    ],
)
def test_bad_row_is_named_with_field_and_fix(png, make_dataset, changes: dict, message: str) -> None:
    bad = row(png)
    bad.update(changes)
    with pytest.raises(DataError) as caught:
        check_dataset(make_dataset([row(png), bad, row(png)]))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": ["a"], "answer": ["b"], "images": [[]]}, "no column 'problem'; its columns are ['question', "),
        ({"problem": ["a"], "images": [[]]}, "no column 'answer'; its columns are ['problem', 'images']. Add it"),
        ({"problem": [5], "answer": ["b"]}, "column 'problem' is int64; expected string"),
        ({"problem": ["a"], "answer": [2.5]}, "column 'answer' is double; expected string or integer"),
        ({"problem": ["a"], "answer": [["b"]]}, "column 'answer' is list"),
        ({"problem": ["a"], "answer": [True]}, "column 'answer' is bool; expected string or integer"),
        (
            {"problem": ["a"], "answers": ["b"]},
            "no column 'answer' (did you mean 'answers'?) and no column 'images'; its",
        ),
        (
            {"problm": ["a"], "answr": ["b"], "x": [1]},
            "no column 'problem' (did you mean 'problm'?) and no column 'answer' (did you mean 'answr'?) and no "
            "column 'images'; its columns are ['problm', 'answr', 'x']. Add them, or name those that hold them, as in "
            "columns: {problem: NAME, answer: NAME, images: NAME}",
        ),
        ({"problem": ["a"], "answer": ["b"]}, "no column 'images'; its columns are ['problem', 'answer']. Add it, or"),
        ({"problem": ["a"], "answer": ["b"], "images": [[]]}, "no row of the dataset has an image"),
        ({"problem": ["a"], "answer": ["b"], "images": [None]}, "no row of the dataset has an image"),
    ],
)
def test_bad_columns_are_named(columns: dict, message: str) -> None:
    with pytest.raises(DataError) as caught:
        check_dataset(datasets.Dataset.from_dict(columns))
    assert message in str(caught.value)


def test_misnamed_picture_column_is_one_error() -> None:
    rows = [{"image": "a.png", "problem": "<image>a", "answer": "b"}] * 3
    with pytest.raises(DataError) as caught:
        check_dataset(datasets.Dataset.from_list(rows))
    assert str(caught.value) == (
        "the dataset has no column 'images' (did you mean 'image'?); its columns are ['image', 'problem', 'answer']. "
        "Add it, or name the one that holds it, as in columns: {images: NAME} (in JSON as the option --columns)"
    )


def test_control_tokens_are_refused_but_not_marks(png, make_dataset) -> None:
    dataset = make_dataset([row(png), row(png, problem="<image>Why <|image_pad|>?")])
    check_dataset(dataset)
    check_dataset(dataset, forbidden=["<image>", "<|video_pad|>"])
    with pytest.raises(DataError) as caught:
        check_dataset(dataset, forbidden=["<|video_pad|>", "<|image_pad|>"])
    assert str(caught.value) == (
        "the dataset of 2 rows cannot be used:\n  row 1, field 'problem': contains '<|image_pad|>', a control token "
        "of this model's tokenizer, which is read as one and not as text; remove or rewrite it, and write "
        "<image> where an image goes\nOr set faulty_rows: drop to skip such rows"
    )


def test_all_control_tokens_of_a_problem_are_named_but_no_ordinary_character(png, make_dataset) -> None:
    text = "<image>Stop!<|im_end|>\n<|im_start|>assistant\n\\boxed{1}<|im_end|> <think>!! a.b"
    dataset = make_dataset([row(png, problem=text)])
    check_dataset(dataset, forbidden=["!", "!!", "a|b", "aXb"])
    with pytest.raises(DataError) as caught:
        check_dataset(dataset, forbidden=["!", "<|im", "<|im_end|>", "<|im_start|>", "a.b", "a|b"])
    faults = str(caught.value).splitlines()[1:-1]
    named = ["'<|im_end|>'", "'<|im_start|>'", "'a.b'"]
    assert [fault.split(": contains ")[1].split(",")[0] for fault in faults] == named
    assert all(fault.startswith("  row 0, field 'problem'") for fault in faults)


@pytest.mark.parametrize("field", ["problem", "answer", "id"])
def test_a_text_beyond_the_limit_is_refused(png, make_dataset, field: str) -> None:
    bad = make_dataset([row(png), row(png)])
    bad = bad.add_column("id", ["0", "1"])
    check_dataset(bad)
    long = [bad[0][field], "<image>" + "x" * 999_994]
    bad = bad.remove_columns(field).add_column(field, long)
    message = f"row 1, field '{field}': 1,000,001 characters, expected at most 1,000,000. Shorten it or drop the row"
    with pytest.raises(DataError) as caught:
        check_dataset(bad)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_faults_keep_the_order_of_rows_and_images(png, make_dataset) -> None:
    images = [[png(), b"bad", png(), b"bad"], [], [b"bad"], [png()], [b"bad"]]
    rows = [row(png, problem="a", images=cell, answer="" if cell == [b"bad"] else "7") for cell in images]
    with pytest.raises(DataError) as caught:
        check_dataset(make_dataset(rows))
    places = [line.strip().split(": ")[0] for line in str(caught.value).splitlines()[1:-1]]
    expected = ["row 0, field 'images', image 1", "row 0, field 'images', image 3"]
    for number in (2, 4):
        expected += [f"row {number}, field 'answer'", f"row {number}, field 'images', image 0"]
    assert places == expected


def test_template_is_checked_with_the_problem(png, make_dataset, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    for text, fault in (
        ("{{ problem }}<|image_pad|>", "contains '<|image_pad|>', a control token"),
        ("<image>{{ problem }}", "2 <image> placeholders but 1 in field 'images'"),
    ):
        template.write_text(text)
        with pytest.raises(DataError) as caught:
            check_dataset(make_dataset([row(png)]), template=str(template), forbidden=["<|image_pad|>"])
        assert f"row 0, field 'problem': with the prompt template around it: {fault}" in str(caught.value)
    template.write_text("{{ problem | replace('<|image_pad|>', '') }}")
    with pytest.raises(DataError, match=r"row 0, field 'problem': contains '<\|image_pad"):
        check_dataset(make_dataset([row(png, problem="<|image_pad|>")]), forbidden=["<|image_pad|>"])


def test_faulty_rows_are_left_out_on_request_and_numbers_stay_those_of_the_source(png, make_dataset, caplog) -> None:
    rows = make_dataset(
        [row(png), row(png, images=[b"bad"]), row(png), row(png, answer=" ", problem=""), row(png, problem="<image>b")]
    )
    with caplog.at_level(logging.WARNING, logger="vgpo"):
        kept = check_dataset(rows, faulty_rows="drop")
    assert kept["row"][:] == [0, 2, 4]
    (said,) = caplog.messages
    assert said.startswith("Dropped 2 of 5 rows, which cannot be used:\n  row 1, field 'images', image 0: ")
    assert [line.split(":")[0] for line in said.splitlines()[2:]] == ["  row 3, field 'problem'"]
    with pytest.raises(DataError, match="row 4, field 'problem': contains '<pad>'"):
        check_dataset(kept.map(lambda one: {"problem": one["problem"].replace("b", "<pad>")}), forbidden=["<pad>"])


def test_what_a_faulty_row_holds_cannot_steer_the_terminal(png, make_dataset, caplog) -> None:
    rows = make_dataset([row(png), row(png, images=["gone\x1b[2J\u202e.png"])])
    with caplog.at_level(logging.WARNING, logger="vgpo"):
        check_dataset(rows, faulty_rows="drop")
    assert "gone[U+001B][2J[U+202E].png" in caplog.text


def test_a_fault_of_the_whole_set_is_never_left_out(make_dataset) -> None:
    rows = [{"images": [], "problem": "a", "answer": "7"}, {"images": [], "problem": "", "answer": "7"}]
    with pytest.raises(DataError, match="no row of the dataset has an image"):
        check_dataset(make_dataset(rows), faulty_rows="drop")


def test_empty_set(png, make_dataset) -> None:
    with pytest.raises(DataError, match="has no row; expected at least one"):
        check_dataset(make_dataset([row(png)]).select([]))


def test_faults_are_listed_together_up_to_ten(png, make_dataset) -> None:
    rows = [row(png), row(png, answer="", problem="")] * 4
    with pytest.raises(DataError) as caught:
        check_dataset(make_dataset(rows))
    assert str(caught.value).count("\n") == 9
    assert str(caught.value).splitlines()[-1] == "Or set faulty_rows: drop to skip such rows"
    with pytest.raises(DataError, match="and more; these are the first 10") as caught:
        check_dataset(make_dataset(rows * 3))
    assert str(caught.value).count("row ") == 10


def test_only_the_first_pictures_are_opened_on_request(png, make_dataset) -> None:
    dataset = make_dataset([row(png), row(png, images=[b"junk"])])
    check_dataset(dataset, max_images=1)
    with pytest.raises(DataError, match="image 0"):
        check_dataset(dataset, max_images=2)


def test_rows_are_counted_after_selection_and_a_long_set_has_a_bar(png, make_dataset, capfd, monkeypatch) -> None:
    dataset = make_dataset([row(png, answer=""), *[row(png) for _ in range(600)]])
    check_dataset(dataset.select(range(600, 0, -1)))
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    check_dataset(dataset.select(range(600, 0, -1)))
    assert "Checking the dataset" in capfd.readouterr().err
    with pytest.raises(DataError, match="row 600, field 'answer'"):
        check_dataset(dataset.select(range(600, -1, -1)), progress=False)
    assert capfd.readouterr().err == ""
