"""Small files of the twelve benchmarks, in each form in which they are published: columns and layout are those of the
original sets, of the authors' repositories and of PAPO-Eval; every text and image is made up.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import PIL.Image

from vgpo.evaluation.benchmark_rows import HUB, PAPO, REPO
from vgpo.evaluation.benchmarks import BENCHMARKS

Row = dict[str, Any]
INSTRUCTION = "\nGive the answer in \\boxed{}."
IN_IMAGE = "Answer the question in the picture."


@dataclass(frozen=True)
class Case:
    """Files of a benchmark in one form, and its questions by hand.

    write: writes them into a folder; the source. questions: what `Question` is expected to hold, by row.
    """

    task: str
    form: str
    write: Callable[[Path], str]
    questions: dict[int, Row] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.task}-{self.form}"


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("L", (4, 4), level).save(file, "PNG")
    return file.getvalue()


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(7))


def hub(rows: list[Row], split: str, column: str, *, as_list: bool = False) -> Callable[[Path], str]:
    """A folder as downloaded from the hub: one parquet file of a split, images as bytes."""

    def write(folder: Path) -> str:
        cells = [{"bytes": png(level), "path": f"{level}.png"} for level in range(len(rows))]
        image = datasets.List(datasets.Image()) if as_list else datasets.Image()
        images = datasets.Dataset.from_dict(
            {column: [[cell] for cell in cells] if as_list else cells}, features=datasets.Features({column: image})
        )
        (folder / "data").mkdir(parents=True, exist_ok=True)
        dataset = datasets.concatenate_datasets([datasets.Dataset.from_list(rows), images], axis=1)
        dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return str(folder)

    return write


def lines(rows: list[Row], name: str) -> Callable[[Path], str]:
    """A file with one row per line. A key with the value `*.png` names the image."""

    def write(folder: Path) -> str:
        save_images(folder, rows)
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return str(folder / name)

    return write


def whole(rows: dict[str, Row] | list[Row], name: str, images: str = "") -> Callable[[Path], str]:
    """A folder with one JSON value: `{id: row}`, or a list. images: folder from which their paths start."""

    def write(folder: Path) -> str:
        save_images(folder / images, list(rows.values()) if isinstance(rows, dict) else rows)
        (folder / name).write_text(json.dumps(rows), encoding="utf-8")
        return str(folder)

    return write


def one_folder_a_row(rows: list[Row]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        for row in rows:
            save_image(folder / str(row["id"]) / "img_diagram.png")
            (folder / str(row["id"]) / "data.json").write_text(json.dumps(row, indent=1), encoding="utf-8")
        return str(folder)

    return write


def papo(task: str, turns: list[tuple[str, str]]) -> Callable[[Path], str]:
    """A folder in PAPO-Eval's layout with the split of a task."""

    def write(folder: Path) -> str:
        split = BENCHMARKS[task].papo_split
        rows = []
        for number, (question, answer) in enumerate(turns):
            path = f"./data/images/{split}/{number}.png"
            save_image(folder / path)
            user = {"role": "user", "content": f"<image>{question}{INSTRUCTION}"}
            messages = [user, {"role": "assistant", "content": answer}]
            rows.append({"messages": messages, "images": [path], "id": f"q{number}"})
        datasets.Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return f"{folder}@{split}"

    return write


def save_images(folder: Path, rows: list[Row]) -> None:
    for row in rows:
        for value in row.values():
            if isinstance(value, str) and value.endswith(".png"):
                save_image(folder / value)


def papo_question(question: str, answer: str, number: int, **fields: Any) -> Row:
    return {"problem": f"<image>{question}{INSTRUCTION}", "answer": answer, "id": f"q{number}", **fields}


def papo_case(task: str, turns: list[tuple[str, str]], options: dict[int, dict[str, str]] | None = None) -> Case:
    expected = {
        number: papo_question(question, answer, number, options=(options or {}).get(number, {}))
        for number, (question, answer) in enumerate(turns)
    }
    return Case(task, PAPO, papo(task, turns), expected)


MATHVISTA = [
    {"pid": "4", "question": "Which colour?", "choices": ["red", "blue"], "unit": None, "precision": None,
     "answer": "blue", "question_type": "multi_choice", "answer_type": "text", "metadata": {"task": "figures"}},
    {"pid": "5", "question": "How wide?", "choices": None, "unit": "cm", "precision": 2.0, "answer": "0.21",
     "question_type": "free_form", "answer_type": "float", "metadata": {"task": "geometry problem"}},
]  # fmt: skip
MATHVISTA_QUESTIONS = {
    0: {"id": "4", "problem": "Which colour?\nA. red\nB. blue", "answer": "B", "options": {"A": "red", "B": "blue"},
        "category": "figures"},
    1: {"id": "5", "problem": "How wide? (Unit: cm)\nGive the number with 2 decimal places.", "answer": "0.21",
        "precision": 2, "category": "geometry problem"},
}  # fmt: skip

TRIANGLE = "How large is x?\nChoices:\nA:30°\nB:40°"
MATHVERSE = [
    {"sample_index": str(number), "problem_index": problem, "problem_version": version, "question": question,
     "answer": answer, "question_type": kind, "metadata": {"source": "made up"}}
    for number, (problem, version, question, answer, kind) in enumerate([
        ("1", "Text Dominant", TRIANGLE, "B", "multi-choice"),
        ("1", "Vision Only", "", "B", "multi-choice"),
        ("2", "Text Lite", "Find y.", "7", "free-form"),
        ("2", "Vision Only", "", "7", "free-form"),
        ("3", "Vision Intensive", TRIANGLE, "30°", "multi-choice"),
        ("3", "Text Only", TRIANGLE, "A", "multi-choice"),
    ])
]  # fmt: skip
ANGLES = {"A": "30°", "B": "40°"}
VISION_QUESTIONS = {
    1: {"id": "1", "problem": IN_IMAGE, "answer": "B", "category": "Vision Only", "cluster": "1"},
    4: {"id": "4", "problem": TRIANGLE, "answer": "A", "category": "Vision Intensive", "cluster": "3",
        "options": ANGLES},
}  # fmt: skip
MATHVERSE_QUESTIONS = {
    0: {"id": "0", "problem": TRIANGLE, "answer": "B", "category": "Text Dominant", "cluster": "1", "options": ANGLES},
    **VISION_QUESTIONS,
}

WEMATH = [
    {"ID": "2steps_7", "key": "2steps_1", "question": "How far?", "option": "A. 3 cm; B. 4 cm", "answer": "A",
     "split": "testmini", "question number": 1},
    {"ID": "2steps_7", "key": "2steps_multi", "question": "Which?", "option": "A. ①; B．②;C. ③", "answer": "C",
     "split": "testmini", "question number": 2},
]  # fmt: skip
WEMATH_QUESTIONS = {
    0: {"id": "2steps_7/2steps_1", "problem": "How far?\nA. 3 cm\nB. 4 cm", "answer": "A", "category": "2steps_1",
        "cluster": "2steps_7", "options": {"A": "3 cm", "B": "4 cm"}},
    1: {"id": "2steps_7/2steps_multi", "problem": "Which?\nA. ①\nB．②\nC. ③", "answer": "C", "cluster": "2steps_7",
        "category": "2steps_multi", "options": {"A": "①", "B": "②", "C": "③"}},
}  # fmt: skip

MMK12 = [{"id": "m1", "question": "<image>Which?\nA) iron\nB) zinc", "answer": "B", "subject": "chemistry"}]
MMK12_QUESTIONS = {
    0: {"id": "m1", "problem": MMK12[0]["question"], "answer": "B", "category": "chemistry",
        "options": {"A": "iron", "B": "zinc"}},
}  # fmt: skip

GEOMETRY3K = [
    {"id": 11, "problem_text": "Find x.", "annotat_text": "Find $x$.", "choices": ["5", "6 \\pi"], "answer": "B"}
]

LOGICVISTA = [
    {"question": "Which? (A) a dog (B) a cat", "answer": "A", "reasoning": "-", "skill": ["inductive"],
     "broad_capability": ["diagram"]},
    {"question": "", "answer": "", "reasoning": "", "skill": ["spatial"], "broad_capability": ["diagram"]},
    {"question": "Which ones (A-D)?", "answer": "A, C", "reasoning": "-", "skill": ["inductive", "spatial"],
     "broad_capability": ["diagram"]},
]  # fmt: skip
LOGICVISTA_QUESTIONS = {
    0: {"id": "v1", "problem": "Which? (A) a dog (B) a cat", "answer": "A", "category": "inductive",
        "options": {"A": "a dog", "B": "a cat"}},
    2: {"id": "v3", "problem": "Which ones (A-D)?", "answer": "A, C", "category": "inductive, spatial"},
}  # fmt: skip
LOGICVISTA_IDS = ("v1", "v2", "v3")

MATHVISION = [
    {"id": "8", "question": "Compare <image1> and <image2>.", "options": ["1", "$2$"], "answer": "B",
     "level": 3, "subject": "algebra"},
    {"id": "9", "question": "How long?\n<image1>", "options": [], "answer": "$\\boxed{\\frac{1}{2}}$", "level": 5,
     "subject": "metric geometry"},
]  # fmt: skip
MATHVISION_QUESTIONS = {
    0: {"id": "8", "problem": "Compare (image 1) and (image 2).\nA. 1\nB. $2$", "answer": "B", "category": "algebra",
        "options": {"A": "1", "B": "$2$"}},
    1: {"id": "9", "problem": "How long?\n<image1>", "answer": "\\frac{1}{2}", "category": "metric geometry"},
}  # fmt: skip

DYNAMATH = {"question": "Is it even? choice: (A) even (B) odd", "subject": "arithmetic"}
DYNAMATH_QUESTIONS = {
    0: {"id": "29", "problem": DYNAMATH["question"], "answer": "A", "category": "arithmetic",
        "options": {"A": "even", "B": "odd"}},
}  # fmt: skip

COUNT = "How many items are there?"
STANDARD = {"question": "Which in <image 1>?", "options": ["up", "down"], "answer": "B", "image_1": "images/1.png"}

CASES = [
    Case("mathvista", HUB, hub([{**row, "image": f"images/{row['pid']}.jpg"} for row in MATHVISTA], "testmini",
                               "decoded_image"), MATHVISTA_QUESTIONS),
    Case("mathvista", REPO, whole({row["pid"]: {**row, "image": f"images/{row['pid']}.png"} for row in MATHVISTA},
                                  "testmini.json"), MATHVISTA_QUESTIONS),
    papo_case("mathvista", [("How wide?", "0.21"), ("Which?\nA. red\n B. blue", "B")],
              {1: {"A": "red", "B": "blue"}}),
    Case("mathverse", HUB, hub(MATHVERSE, "testmini", "image"), MATHVERSE_QUESTIONS),
    Case("mathverse", REPO, whole([{**row, "image": "1.png"} for row in MATHVERSE], "testmini.json", "images"),
         MATHVERSE_QUESTIONS),
    papo_case("mathverse", [(TRIANGLE, "B"), ("", "A")], {0: ANGLES}),
    Case("mathverse_v", HUB, hub(MATHVERSE, "testmini", "image"), VISION_QUESTIONS),
    Case("mathverse_v", REPO, whole([{**row, "image": "1.png"} for row in MATHVERSE], "testmini.json", "images"),
         VISION_QUESTIONS),
    papo_case("mathverse_v", [(TRIANGLE, "B")], {0: ANGLES}),
    Case("wemath", HUB, hub(WEMATH, "testmini", "image_path"), WEMATH_QUESTIONS),
    Case("wemath", REPO, whole([{**row, "image_path": "2steps/image/1.png"} for row in WEMATH], "testmini.json"),
         WEMATH_QUESTIONS),
    papo_case("wemath", [("How far?  \nA. 3 cm  \n B. 4 cm", "A")], {0: {"A": "3 cm", "B": "4 cm"}}),
    Case("mmk12", HUB, hub(MMK12, "test", "image"), MMK12_QUESTIONS),
    Case("mmk12", REPO, lines([{**row, "image": "images/1.png"} for row in MMK12], "test.jsonl"), MMK12_QUESTIONS),
    papo_case("mmk12", [("Which?\nA. iron\nB. zinc", "B")], {0: {"A": "iron", "B": "zinc"}}),
    Case("geomath", HUB, hub([{"problem": "<image>How far?", "answer": "7"}], "train", "images", as_list=True),
         {0: {"id": "0", "problem": "<image>How far?", "answer": "7"}}),
    Case("geomath", REPO, lines([{"question": "How far?", "answer": 7, "image": "1.png"}], "test.jsonl"),
         {0: {"id": "0", "problem": "How far?", "answer": "7"}}),
    Case("geometry3k", HUB, hub([{"problem": "<image>Find $x$.", "answer": "6 \\pi"}], "test", "images", as_list=True),
         {0: {"id": "0", "problem": "<image>Find $x$.", "answer": "6 \\pi"}}),
    Case("geometry3k", REPO, one_folder_a_row(GEOMETRY3K), {0: {"id": "11", "problem": "Find $x$.",
                                                                "answer": "6 \\pi"}}),
    papo_case("geometry3k", [("Find $x$.", "6 \\pi")]),
    Case("logicvista", HUB, hub([{"id": name, **row} for name, row in zip(LOGICVISTA_IDS, LOGICVISTA, strict=True)],
                                "test", "image"), LOGICVISTA_QUESTIONS),
    Case("logicvista", REPO, whole({name: {**row, "imagename": f"{name}.png"} for name, row in
                                    zip(LOGICVISTA_IDS, LOGICVISTA, strict=True)}, "dataset.json", "images"),
         LOGICVISTA_QUESTIONS),
    papo_case("logicvista", [("Which? (A) a dog (B) a cat", "A")], {0: {"A": "a dog", "B": "a cat"}}),
    Case("counting", HUB, hub([{"problem": f"<image>{COUNT}", "answer": 4}], "test", "images", as_list=True),
         {0: {"id": "0", "problem": f"<image>{COUNT}", "answer": "4"}}),
    Case("counting", REPO, lines([{"image_path": "./images/1.png", "question": COUNT, "ground_truth": 4}],
                                 "counting.jsonl"), {0: {"id": "0", "problem": COUNT, "answer": "4"}}),
    papo_case("counting", [(COUNT, "4")]),
    Case("mmmu_pro", HUB, hub([{"id": "test_Art_1", "options": "['up', 'down']", "answer": "B", "subject": "Art"}],
                              "test", "image"),
         {0: {"id": "test_Art_1", "problem": IN_IMAGE, "answer": "B", "category": "Art"}}),
    Case("mmmu_pro", REPO, lines([STANDARD], "data.jsonl"),
         {0: {"id": "0", "problem": "Which in <image 1>?\nA. up\nB. down", "answer": "B",
              "options": {"A": "up", "B": "down"}}}),
    papo_case("mmmu_pro", [("Answer by the image.", "B")]),
    Case("mathvision", HUB, hub([{**row, "image": f"images/{row['id']}.jpg"} for row in MATHVISION], "test",
                                "decoded_image"), MATHVISION_QUESTIONS),
    Case("mathvision", REPO, lines([{**row, "image": f"images/{row['id']}.png"} for row in MATHVISION],
                                   "test.jsonl"), MATHVISION_QUESTIONS),
    Case("dynamath", HUB, hub([{"id": "29", **DYNAMATH, "image": "image/29.png", "ground_truth": "A"}],
                              "sample_variant1", "decoded_image"), DYNAMATH_QUESTIONS),
    Case("dynamath", REPO, whole({"29": {**DYNAMATH, "answer": "A", "image": "image/29.png"}}, "dataset.json"),
         DYNAMATH_QUESTIONS),
]  # fmt: skip
