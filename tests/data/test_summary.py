import datasets
import pytest

from vgpo.data import answer_kind, summarize
from vgpo.data.preview import histogram


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("number", ["7", "-3.5", "1,000", "50%", "50\\%", "30°", "1.2e3", ".5", " 12 ", "$20"]),
        ("choice letter", ["A", "(C)", "D.", "L"]),
        ("several letters", ["A, C", "A,C", "A and C", "(A), (B)"]),
        ("yes or no", ["yes", "No", "TRUE", "False."]),
        ("expression", ["2 \\sqrt { 221 }", "\\frac{1}{2}", "3/4", "x=3", "2x+1", "12 cm", "7:30", "(1, 2)", "4π"]),
        ("text", ["Rectangles", "30 minutes", "left", "M", "ABD"]),
        ("empty", ["", "  ", None]),
    ],
)
def test_types_of_answers(kind: str, answers: list[str | None]) -> None:
    assert {answer: answer_kind(answer) for answer in answers} == dict.fromkeys(answers, kind)


def test_counts_by_pictures_answers_and_kinds() -> None:
    rows = [
        {
            "images": [{"bytes": b"", "path": None}] * (number % 3),
            "problem": "a",
            "answer": "A" if number % 2 else "7",
            "meta": {
                "level": number % 2,
                "source": "one",
                "name": f"row {number}",
                "task": "x" if number < 2 else "y",
                "record": {"category": "u" if number < 5 else None, "other": "v" if number % 2 else "w"},
            },
        }
        for number in range(6)
    ]
    summary = summarize(datasets.Dataset.from_list(rows))
    assert summary.num_rows == 6
    assert summary.images == {"0 images": 2, "1 image": 2, "2 images": 2}
    assert summary.answers == {"number": 3, "choice letter": 3}
    # Not a name of its own for every row, nor the same for all, nor numbers; a name that says a kind comes first.
    assert summary.kinds == {"task": {"y": 4, "x": 2}, "record.other": {"w": 3, "v": 3}}
    assert list(summary.tables) == ["images per row", "answers by type", "task", "record.other"]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([7], [(7, 7, 1, 1.0)]),
        ([7, 7, 9], [(7, 7, 2, 1.0), (8, 8, 0, 0.0), (9, 9, 1, 0.5)]),
        # 25 lengths in at most 12 bins are 9 bins of 3, the last one wider than the data
        ([0, 24], [(0, 2, 1, 1.0), *[(low, low + 2, 0, 0.0) for low in range(3, 24, 3)], (24, 26, 1, 1.0)]),
    ],
)
def test_histogram(lengths: list[int], expected: list[tuple[int, int, int, float]]) -> None:
    assert [(part.low, part.high, part.num_prompts, part.share) for part in histogram(lengths)] == expected
