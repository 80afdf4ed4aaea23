import pickle
from pathlib import Path

import datasets
import pytest

from vgpo.data import DataError, check_dataset, template_text, to_prompts


def prompt_of(make_dataset, problem: str, images: list[bytes], template: str = "plain") -> tuple[list, list[int]]:
    """The content parts of the prompt, with texts unwrapped, and the grey levels of the images."""
    dataset = to_prompts(make_dataset([{"images": images, "problem": problem, "answer": "7"}]), template)
    (message,) = dataset[0]["prompt"]
    assert message["role"] == "user"
    parts = [part.get("text", part) for part in message["content"]]
    return parts, [image.getpixel((0, 0))[0] for image in dataset[0]["images"]]


IMAGE = {"type": "image"}


@pytest.mark.parametrize(
    ("problem", "num_images", "parts", "order"),
    [
        ("<image>How many?", 1, [IMAGE, "How many?"], [0]),
        ("Is <image> like <image>?", 2, ["Is ", IMAGE, " like ", IMAGE, "?"], [0, 1]),
        ("Look: <image>", 1, ["Look: ", IMAGE], [0]),
        ("<image><image>", 2, [IMAGE, IMAGE], [0, 1]),
        ("<image 1> or <image_2>", 2, [IMAGE, " or ", IMAGE], [0, 1]),
        ("<image 2> or <image 1>", 2, [IMAGE, " or ", IMAGE], [1, 0]),
        ("<image_4>How many?", 1, [IMAGE, "How many?"], [0]),
        ("<image2>, not <image1>", 2, [IMAGE, ", not ", IMAGE], [1, 0]),
        ("How many?", 2, [IMAGE, IMAGE, "How many?"], [0, 1]),
        ("How many?", 0, ["How many?"], []),
        ("{{ 7 * 7 }} <images>", 1, [IMAGE, "{{ 7 * 7 }} <images>"], [0]),
    ],
)
def test_marks_keep_their_places(png, make_dataset, problem, num_images, parts, order) -> None:
    images = [png(level) for level in range(num_images)]
    assert prompt_of(make_dataset, problem, images) == (parts, order)


def test_rows_are_what_trl_takes_and_pickle(png, make_dataset) -> None:
    source = make_dataset([{"images": [png(9)], "problem": "<image>How many?", "answer": "7"}] * 2)
    dataset = to_prompts(source.add_column("id", [3, 4]))
    row = pickle.loads(pickle.dumps(dataset))[1]
    assert list(row) == ["prompt", "images", "problem", "answer", "id"]
    assert (row["problem"], row["answer"], row["images"][0].mode) == ("<image>How many?", "7", "RGB")
    assert [len(batch["prompt"]) for batch in dataset.iter(2)] == [2]


@pytest.mark.parametrize(
    ("image", "message"), [("gone.png", "no image file gone.png"), (b"junk", "of 4 bytes|and 4 bytes")]
)
def test_bad_picture_is_told_with_its_problem_when_the_row_is_read(make_dataset, image, message) -> None:
    source = make_dataset([{"images": [image], "problem": "<image>Who?", "answer": "7"}])
    dataset = to_prompts(source)
    with pytest.raises(DataError, match=rf"({message}).*row with the problem '<image>Who\?'"):
        dataset[0]
    assert source.features["images"].feature.decode  # the caller's dataset is unchanged


def test_undecoded_pictures_missing_images_and_integer_answers(png) -> None:
    rows = [{"images": [{"bytes": png(), "path": None}], "problem": "<image>a", "answer": 7}]
    assert to_prompts(datasets.Dataset.from_list(rows))[0]["images"][0].size == (4, 4)
    row = to_prompts(datasets.Dataset.from_list([{"problem": "a", "answer": 7}]))[0]
    assert (row["images"], row["answer"]) == ([], "7")


def test_think_boxed_keeps_the_picture_and_asks_for_the_form(png, make_dataset) -> None:
    parts, _ = prompt_of(make_dataset, "<image>\nHow many?\n", [png()], "think_boxed")
    assert parts[0] == IMAGE
    assert parts[1].startswith("\nHow many?\n\n")
    assert all(form in parts[1] for form in ("<think>", "</think>", "\\boxed{"))
    assert not parts[1].endswith("\n")


def test_template_from_a_file(png, make_dataset, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("Q: {{ problem }}\nA:\n")
    assert prompt_of(make_dataset, "<image>How many?", [png()], str(path))[0] == ["Q: ", IMAGE, "How many?\nA:"]
    assert template_text(str(path)) == "Q: {{ problem }}\nA:\n"
    assert template_text("plain") == "{{ problem }}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no prompt template '.*mine.jinja'; use one of \['plain', 'think_boxed'\] or the path"),
        ("Solve it.", r"uses the variables \[\]; expected exactly \['problem'\]"),
        ("{{ problem }} {{ name }}", r"uses the variables \['name', 'problem'\]; expected exactly \['problem'\]"),
        ("a\n{{ problem ", "has an error in line 2"),
        ("{{ problem | shout }}", "has an error in line 1: No filter named 'shout'"),
    ],
)
def test_bad_template(png, make_dataset, tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "mine.jinja"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        to_prompts(make_dataset([{"images": [png()], "problem": "a", "answer": "7"}]), str(path))


def test_template_of_another_encoding(make_dataset, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_bytes("{{ problem }} é".encode("latin-1"))
    with pytest.raises(DataError, match=r"mine.jinja is not UTF-8 .*; save it as UTF-8"):
        to_prompts(make_dataset([{"images": [], "problem": "a", "answer": "7"}]), str(path))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ problem.x.y }}", "UndefinedError: 'str object' has no attribute 'x'"),
        ("{{ problem + 1 }}", "TypeError: can only concatenate str"),
        ("{{ problem }}{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ problem.__class__.__base__ }}", "SecurityError: access to attribute '__class__'"),
    ],
)
def test_template_that_cannot_be_filled_in(png, make_dataset, tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(text)
    dataset = make_dataset([{"images": [png()], "problem": "Which?", "answer": "7"}])
    with pytest.raises(DataError, match=rf"cannot be rendered \({reason}.*\); correct it. The problem is 'Which\?'"):
        check_dataset(dataset, template=str(path))
    with pytest.raises(DataError, match=r"cannot be rendered"):
        to_prompts(dataset, str(path))[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"images": [], "problem": "<image>Which?"},
            r"1 <image> placeholder but 0 in field 'images'; expected equal .* \(row with the problem '<im",
        ),
        ({"images": [{"bytes": b"junk"}], "problem": "<image>Which?"}, "cannot be opened .* problem '<image>Which"),
    ],
)
def test_bad_row_is_named_by_its_problem(row: dict, message: str) -> None:
    dataset = to_prompts(datasets.Dataset.from_list([{**row, "answer": "7"}]))
    with pytest.raises(DataError, match=message):
        dataset[0]


def test_missing_column_is_named_at_once() -> None:
    with pytest.raises(DataError, match="no column 'answer'"):
        to_prompts(datasets.Dataset.from_dict({"problem": ["a"]}))
