"""An inspection's file: it round-trips, and anything else is rejected."""

import copy
import json
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.inspection.made import grid, inspection, odd, question, rollout
from tests.report.run_records import ATTACKS
from vgpo.inspection import Inspection, InspectionError, iter_questions, write_inspection
from vgpo.inspection.inspection import read_head


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    hostile = question(9, [rollout(0, 6, tokens=ATTACKS, text="".join(ATTACKS))], problem=ATTACKS[0])
    data = odd() | {"questions": [*odd()["questions"], hostile]}
    path = tmp_path / "new" / "inspection.json"
    Inspection(data).write(path)
    assert Inspection.read(path).data == json.loads(json.dumps(data)) == data
    assert list(iter_questions(path)) == data["questions"]
    assert read_head(path) | {"questions": data["questions"]} == data
    lines = path.read_bytes().splitlines()
    assert len(lines) == len(data["questions"]) + 2  # the head, and the end
    assert [json.loads(line.rstrip(b",")) for line in lines[1:-1]] == data["questions"]


def test_no_question_is_an_inspection_too(tmp_path: Path) -> None:
    Inspection(inspection([])).write(tmp_path / "a.json")
    assert Inspection.read(tmp_path / "a.json").questions == list(iter_questions(tmp_path / "a.json")) == []


def test_questions_are_written_as_they_come(tmp_path: Path) -> None:
    def questions() -> Iterator[dict[str, Any]]:
        for number in range(3):
            # What came before is out of the writer's hands already.
            assert sum(partial.read_bytes().count(b'{"row"') for partial in tmp_path.glob(".*")) == number
            yield question(number)

    write_inspection(tmp_path / "a.json", Inspection(inspection([])).head, questions())
    assert len(Inspection.read(tmp_path / "a.json").questions) == 3


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    Inspection(inspection([question()])).write(path)
    before = path.read_bytes()

    def questions() -> Iterator[dict[str, Any]]:
        yield question(1)
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        write_inspection(path, Inspection(inspection([])).head, questions())
    assert path.read_bytes() == before


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda data: data.update(version=2), r"found version 2, expected 1; re-create it"),
    "no version": (lambda data: data.pop("version"), r"found version null, expected 1"),
    "head": (
        lambda data: data.pop("settings"),
        "this inspection: settings: missing; re-create it with `vgpo inspect`",
    ),
    "models": (lambda data: data.update(models=[]), "models: found a list of 0, expected at least 1"),
    "models' kind": (lambda data: data.update(models=3), "models: found 3, expected a list"),
    "settings": (lambda data: data.update(settings=[]), "settings: found a list of 0, expected an object"),
    "created": (lambda data: data.update(created="today"), 'created: found "today", expected a time in ISO 8601'),
    "before responses were told": (lambda data: data.pop("responses"), "responses: missing; re-create it"),
    "responses": (
        lambda data: data["responses"].update({"from": "hearsay"}),
        "found \"hearsay\", expected 'from' to be",
    ),
    "unhashable": (
        lambda data: data["responses"].update({"from": []}),
        r"responses: found \"\[\]\", expected 'from' to be one of 'answers', 'rollouts'",
    ),
    "temperature": (
        lambda data: data["responses"].update(temperature=None),
        "responses, answers, temperature: found null, expected a number",
    ),
    "steps": (
        lambda data: data.update(responses={"from": "rollouts", "steps": [1]}),
        "responses, rollouts, steps: found a list of 1, expected at least 2",
    ),
    "model": (lambda data: data["models"][1].pop("family"), "model 1, family: missing"),
    "question": (lambda data: data["questions"][2].pop("kind"), "question 2: kind: missing"),
    "no object": (
        lambda data: data["questions"].__setitem__(0, []),
        "question 0: found a list of 0, expected an object",
    ),
    "image": (lambda data: first(data)["images"][0].pop("data"), "question 0: image 0, data: missing"),
    "grid": (lambda data: first(data)["grids"][0].update(image=3), "grid 0, image: found 3, expected one of the 1"),
    "images": (lambda data: first(data).update(images=None), "images: found null, expected a list"),
    "box": (lambda data: first(data)["grids"][0]["box"].pop(), "grid 0, box: found a list of 3, expected at least 4"),
    "edge": (
        lambda data: first(data)["grids"][0].update(box=[0, 0, 1, "1"]),
        r"box\[3\]: found \"1\", expected a number",
    ),
    "rows": (lambda data: first(data)["grids"][0].update(rows="2"), 'rows: found "2", expected a whole number'),
    "token": (
        lambda data: first(data)["grids"][0].update(tokens=[0, -1, 2, 3]),
        r"grid 0, tokens\[1\]: found -1, expected 0 or more",
    ),
    "cells": (lambda data: first(data)["grids"][0].update(rows=9), "found 4 tokens, expected 9 rows x 2 columns"),
    "name": (lambda data: first(data)["grids"][0].update(name=7), "grid 0, name: found 7, expected text"),
    "averaged": (lambda data: first(data)["grids"][0].update(averaged=[2]), "averaged: found a list of 1, expected"),
    "rollout": (lambda data: rollout_of(data).pop("focus"), "question 0: rollout 1, focus: missing"),
    "which model": (
        lambda data: rollout_of(data).update(model=2),
        "rollout 1, model: found 2, expected the index of one of 2",
    ),
    "sign": (lambda data: rollout_of(data).update(model=True), "rollout 1, model: found true, expected a whole num"),
    "tokens": (lambda data: rollout_of(data).update(tokens=5), "rollout 1, tokens: found 5, expected a list"),
    "no text": (
        lambda data: rollout_of(data)["tokens"].__setitem__(3, None),
        r"rollout 1, tokens\[3\]: found null, expected text",
    ),
    "no number": (
        lambda data: rollout_of(data)["focus"].__setitem__(3, "0.1"),
        r"focus\[3\]: found \"0\.1\", expected a number",
    ),
    "no number but true": (
        lambda data: rollout_of(data)["focus"].__setitem__(0, True),
        r"focus\[0\]: found true, exp",
    ),
    "fraction": (lambda data: rollout_of(data).update(sample=1.0), "sample: found 1.0, expected a whole number"),
    "infinite": (
        lambda data: rollout_of(data).update(late_early_ratio=float("inf")),
        "ratio: found Infinity, expected a finite number",
    ),
    "gate": (
        lambda data: rollout_of(data)["gate"].__setitem__(3, 1),
        r"gate\[3\]: found 1, expected true or false",
    ),
    "sources": (lambda data: rollout_of(data)["attention"].pop("image"), "rollout 1, attention, image: missing"),
    "without": (
        lambda data: rollout_of(data)["without"]["blank"].pop("text"),
        "rollout 1, without, blank, text: missing",
    ),
    "length": (lambda data: rollout_of(data)["focus"].pop(), "rollout 1, focus: found 11 values, expected 12"),
    "attention": (
        lambda data: rollout_of(data)["attention"]["image"].pop(),
        "rollout 1, attention, image: found 11 values, expected 12",
    ),
    "low": (lambda data: rollout_of(data)["patches"].update(low=None), "low: found null, expected a number"),
    "nan": (
        lambda data: rollout_of(data)["patches"].update(high=float("nan")),
        "high: found NaN, expected a finite number",
    ),
    "peaks": (lambda data: rollout_of(data)["patches"]["peaks"].pop(), "patches, peaks: found 12 lists, expected 13"),
    "peak": (
        lambda data: rollout_of(data)["patches"]["peaks"].__setitem__(4, [0, 2]),
        r"patches, peaks\[4\]: found \[0, 2\], expected columns that the grids name",
    ),
    "base64": (
        lambda data: rollout_of(data)["patches"].update(data="?"),
        'rollout 1, patches, data: found "[?]", expected base64 text',
    ),
    "bytes": (
        lambda data: rollout_of(data)["patches"].update(data="AAAA"),
        "patches, data: found 3 bytes, expected 12 tokens x 16 columns",
    ),
    "columns": (
        lambda data: first(data)["grids"].append(grid(rows=1, columns=1, first=99)),
        "patches, columns: found 16, expected at least the 100 that the grids name",
    ),
}


def first(data: dict[str, Any]) -> dict[str, Any]:
    return data["questions"][0]


def rollout_of(data: dict[str, Any]) -> dict[str, Any]:
    return first(data)["rollouts"][1]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_inspection_is_said(fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    data = copy.deepcopy(odd())
    change(data)
    with pytest.raises(InspectionError, match=message):
        Inspection(data)
    path = tmp_path / "inspection.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InspectionError, match=f"^{path}: .*{message}"):
        Inspection.read(path)


def test_other_keys_are_ignored() -> None:
    data = odd()
    for record in (data, data["responses"], data["models"][0], first(data), first(data)["grids"][0], rollout_of(data)):
        record["note"] = ["of another tool"]
    assert Inspection(data).data is data


def test_a_message_has_the_first_faults_and_one_of_each_list() -> None:
    data = odd()
    rollout_of(data).update(model="x" * 1000, sample=None, focus=["high"] * 12, gate=[2] * 12, tokens=None)
    with pytest.raises(InspectionError) as caught:
        Inspection(data)
    assert str(caught.value) == (
        'this inspection, question 0: rollout 1, focus[0]: found "high", expected a number; rollout 1, gate[0]: '
        f'found 2, expected true or false; rollout 1, model: found "{"x" * 79} ..., expected a whole number; and 2 '
        "more; re-create it with `vgpo inspect`"
    )


def test_files_that_are_cut_or_laid_out_anew_are_told(tmp_path: Path) -> None:
    path = tmp_path / "inspection.json"
    Inspection(odd()).write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    with pytest.raises(InspectionError, match=r"the file is truncated; re-create it"):
        list(iter_questions(path))
    with pytest.raises(InspectionError, match=r"not valid JSON .*; re-create it"):
        Inspection.read(path)
    path.write_bytes(b"".join([b"{" + lines[0], *lines[1:]]))
    for read in (read_head, lambda path: list(iter_questions(path))):
        with pytest.raises(InspectionError, match=rf"^{path}, line 1: not valid JSON"):
            read(path)
    path.write_bytes(b"".join([*lines[:2], lines[2][:50] + b"\n", *lines[3:]]))
    with pytest.raises(InspectionError, match=r"line 3: not valid JSON"):
        list(iter_questions(path))
    path.write_text(json.dumps(odd(), indent=1))
    with pytest.raises(InspectionError, match=r"first line does not end in .*read it with Inspection\.read"):
        list(iter_questions(path))
    assert Inspection.read(path).data == odd()
    path.write_text("[]")
    with pytest.raises(InspectionError, match=r"found a list of 0, expected an object"):
        Inspection.read(path)


def of_one_model(name: str, **changes: Any) -> Inspection:
    data = inspection([question(n, [rollout(0, seed=n)]) for n in (4, 7)], models=(name,))
    return Inspection({**data, **changes})


def test_two_models_side_by_side() -> None:
    both = of_one_model("start").compared_with(of_one_model("trained"))
    assert [model["name"] for model in both.data["models"]] == ["start", "trained"]
    assert [[one["model"] for one in question["rollouts"]] for question in both.questions] == [[0, 1], [0, 1]]
    assert [question["row"] for question in both.questions] == [4, 7]
    other_seed = of_one_model("trained", responses={**both.data["responses"], "seed": 5})
    assert of_one_model("start").compared_with(other_seed).data["responses"] == both.data["responses"]


def test_two_models_that_were_asked_other_things_are_not_compared() -> None:
    start = of_one_model("start")
    drawn = {**start.data["responses"], "temperature": 1.0}
    with pytest.raises(InspectionError, match=r"differ in responses: .*0\.0.* and .*1\.0"):
        start.compared_with(of_one_model("trained", responses=drawn))
    stored = {"from": "rollouts", "steps": [2, 4]}
    with pytest.raises(InspectionError, match="differ in responses"):
        start.compared_with(of_one_model("trained", responses=stored))
    with pytest.raises(InspectionError, match="one of the inspections has more questions"):
        start.compared_with(of_one_model("trained", questions=start.questions[:1]))
    with pytest.raises(InspectionError, match="row 4: the inspections differ in 'row'"):
        start.compared_with(of_one_model("trained", questions=start.questions[::-1]))
    finer = [{**one, "grids": [grid(rows=3, columns=2)]} for one in start.questions]
    with pytest.raises(
        InspectionError, match=r"row 4: the inspections differ in 'grids'; compare models of one family"
    ):
        start.compared_with(of_one_model("trained", questions=finer))
    with pytest.raises(InspectionError, match="of 2 and 1 models; expected one each"):
        start.compared_with(start).compared_with(start)


def test_a_table_has_a_row_for_each_token() -> None:
    data = odd()
    table = Inspection(data).to_dataframe()
    rollouts = [(one, asked) for asked in data["questions"] for one in asked["rollouts"]]
    assert len(table) == sum(len(one["tokens"]) for one, _ in rollouts)
    one, asked = rollouts[1]
    mine = table[(table["row"] == asked["row"]) & (table["model"] == "trained")]
    assert mine["token"].tolist() == one["tokens"]
    assert mine["position"].tolist() == list(range(12))
    for name in ("similarity", "focus", "gate", "weight", "token_factor", "advantage"):
        assert mine[name].tolist() == one[name]
    assert mine["attention_generated"].tolist() == one["attention"]["generated"]
    assert set(mine["late_early_ratio"]) == {one["late_early_ratio"]}
    assert table[table["row"] == 2]["focus"].isna().all()


def test_a_notebook_shows_the_page_in_a_frame() -> None:
    found = Inspection(inspection([question(0, [rollout(0, 1, tokens=[ATTACKS[0]])])], models=("start",)))
    frames = []

    class Frames(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            frames.append((tag, dict(attrs)))

    Frames().feed(found._repr_html_())
    ((tag, attributes),) = frames
    assert tag == "iframe"
    assert attributes["sandbox"] == "allow-scripts"
    assert attributes["srcdoc"] == found.to_html()
