"""What must hold of every surface whatever text meets it; an AssertionError says what did not."""

import functools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.report.run_records import answers, evaluation, handed_over, rollout
from tests.suite.evaluations import graded, task_record, write_evaluation
from vgpo.answers import compare_text, is_words
from vgpo.data import DatasetSummary
from vgpo.data.preview import Preview, SetCheck, write_page
from vgpo.pages.texts import truncate
from vgpo.report import render, report_data
from vgpo.rewards import Grader, extract_boxed, format_reward, strip_outer_box
from vgpo.rewards.grammar import is_unsafe
from vgpo.run import RunFolder
from vgpo.suite.comparison import page_data
from vgpo.suite.page import render_evaluations
from vgpo.text import visible

STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class Outline(HTMLParser):
    """The elements of a page with their attributes, and the text inside each element that is not empty."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.page = page
        self.other: list[str] = []  # comments, declarations: what is neither an element nor text
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, attrs))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}", []))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data

    def handle_comment(self, data: str) -> None:
        self.other.append(data)

    def unknown_decl(self, data: str) -> None:
        self.other.append(data)

    def handle_pi(self, data: str) -> None:
        self.other.append(data)

    def texts_of(self, tag: str) -> list[str]:
        return [text for (name, _), text in zip(self.elements, self.texts, strict=True) if name == tag]


def check_visible(text: str) -> None:
    shown = visible(text)
    assert not STEERING.search(shown)
    shown.encode("utf-8")
    assert visible(shown) == shown
    hidden = re.sub(r"\[U\+([0-9A-F]{4,6})\]", lambda match: chr(int(match[1], 16)), shown)
    assert "[U+" in text or hidden == text


def check_extraction(text: str) -> None:
    content = extract_boxed(text)
    if content is None:
        assert not closed(text)
    else:
        assert content == content.strip()
        assert "\\boxed{" not in content
        assert content in text
        assert content.count("{") == content.count("}")
    assert strip_outer_box(text) in text
    assert format_reward([text, f"<think>{text}</think>{text}"]) in ([0.0, 0.0], [0.0, 1.0], [1.0, 0.0])


def closed(text: str) -> bool:
    r"""Whether the last `\boxed{` is ever closed; counts again at each closing brace, so only for short texts."""
    _, box, content = text.rpartition("\\boxed{")
    ends = [i + 1 for i, character in enumerate(content) if character == "}"]
    return bool(box) and any(content[:end].count("{") + 1 == content[:end].count("}") for end in ends)


def check_verdict(answer: str, gold: str) -> None:
    """Needs no worker: only what text alone decides, and the filters before the symbolic check."""
    assert is_unsafe(answer) in (True, False)
    assert is_words(answer[:1000]) in (True, False)
    if gold := strip_outer_box(gold):
        assert compare_text(None, gold) is compare_text("", gold) is False
        assert compare_text(gold, gold) is True
        assert compare_text(answer, gold) in (True, False, None)


def check_grade(grader: Grader, response: str, gold: str) -> None:
    verdicts = grader.grade([response, f"{response}\\boxed{{}}", "\\boxed{\x1b}"], [gold, gold, "2"])
    assert verdicts[0] in (True, False)
    assert verdicts[1:] == [False, False]


def check_run_folder(folder: RunFolder, text: str) -> str:
    """Write a run full of `text`, read it back and draw it; it differs from plain words in text alone. The page."""
    expected = elements_of_a_plain_run(folder)
    outline = write_rollouts(folder, text)
    assert outline.elements == expected
    assert outline.other == []
    [record] = folder.read_rollouts()
    assert (record.problem, record.answer, record.completion, record.tokens) == (text, text, text, [text])
    assert record.rewards == {text: 1.0}
    data = json.loads(outline.texts_of("script")[0])
    assert data == report_data([folder.path])
    [shown] = data["runs"][0]["rollouts"]
    assert shown["question"].startswith(text[:4000])
    assert shown["tokens"][0].startswith(text[:400])
    [asked] = data["runs"][0]["held_out"]["entries"]
    assert asked["problem"] == truncate(text, 4000)
    assert (asked["before"]["predicted"], asked["after"]["completion"]) == (truncate(text, 400), truncate(text, 2000))
    assert truncate(text, 200) in [chart["title"] for chart in data["metrics"]["charts"]]
    return outline.page


@functools.cache
def elements_of_a_plain_run(folder: RunFolder) -> list[Any]:
    return write_rollouts(folder, "plain").elements


def write_rollouts(folder: RunFolder, text: str) -> Outline:
    folder.rollouts_path.unlink(missing_ok=True)
    folder.metrics_path.unlink(missing_ok=True)
    folder.log_metrics({"step": 1, text: 1.0})
    given = answers([True], problem=text, answer=text, completion=text, predicted=text)
    scores = {**evaluation(1.0, 0.9, 1.0), "answers": given}
    folder.write_evaluation({"before": scores, "after": scores})
    per_token = {"focus": [0.5], "gate": [True], "token_factor": [1.0]}
    texts = {"problem": text, "answer": text, "completion": text, "tokens": [text], "rewards": {text: 1.0}}
    folder.write_rollouts(*handed_over([rollout(images=[], **texts, **per_token)]))
    return Outline(render(report_data([folder.path])))


def check_settings(data: dict[str, Any], text: str) -> None:
    """The parts of the report that the template writes itself: names, models, settings, machines."""
    outline = Outline(render(named(data, text)))
    assert outline.elements == Outline(render(named(data, "plain"))).elements
    assert outline.other == []
    assert outline.texts_of("code") == [visible(text)]
    assert outline.texts_of("h2")[0] == visible(text)
    cells = [cell.strip("\n") for cell in outline.texts_of("td")]
    assert cells.count(visible(text).strip("\n")) >= 4


def named(data: dict[str, Any], text: str) -> dict[str, Any]:
    run = {**data["runs"][0], "name": text, "model": text or "-", "machine": text, "commit": None}
    settings = [{"name": text, "values": [text, text], "first": False, "marked": text or "-", "default": text}]
    verdict = {"tone": "open", "headline": text, "details": [text]}
    return {**data, "runs": [run, run], "settings": settings, "verdict": verdict}


def check_data_page(path: Path, text: str) -> None:
    outline = data_page(path, text)
    assert outline.elements == elements_of_a_plain_page(path.with_name("plain.html"))
    assert outline.other == []
    # A browser leaves out a line break that follows <pre>.
    assert [pre.removeprefix("\n") for pre in outline.texts_of("pre")] == [visible(text)] * 2
    assert outline.texts_of("th")[4] == visible(text)


@functools.cache
def elements_of_a_plain_page(path: Path) -> list[Any]:
    return data_page(path, "plain").elements


def data_page(path: Path, text: str) -> Outline:
    write_page([set_check(text)], path, recipe=text)
    return Outline(path.read_text(encoding="utf-8"))


def set_check(text: str) -> SetCheck:
    preview = Preview(row=0, id=text, tokens=3, text=text, answer=text, sizes=[], images=[])
    summary = DatasetSummary(num_rows=1, images={}, answers={}, kinds={text: {text: 1}})
    return SetCheck(
        field="train_dataset", source=text, summary=summary, lengths=[3], left_out=f"{text}.", previews=[preview]
    )


def check_evaluation_page(folder: Path, text: str) -> str:
    """Write two evaluations full of `text` and draw them; they differ from plain words in text alone. The page."""
    outline = evaluation_page(folder, text)
    assert outline.elements == elements_of_a_plain_evaluation(folder)
    assert outline.other == []
    short = truncate(text, 300)
    assert [cell.strip("\n") for cell in outline.texts_of("td")].count(visible(short).strip("\n")) >= 8
    [row] = json.loads(outline.texts_of("script")[0])["rows"]
    assert row["problem"] == truncate(text, 4000)
    assert row["id"] == row["category"] == row["answer"] == truncate(text, 400)
    for [answer] in row["answers"]:
        assert (answer["predicted"], answer["completion"]) == (truncate(text, 400), truncate(text, 20_000))
    return outline.page


@functools.cache
def elements_of_a_plain_evaluation(folder: Path) -> list[Any]:
    return evaluation_page(folder, "plain").elements


def evaluation_page(folder: Path, text: str) -> Outline:
    texts = dict.fromkeys(("id", "problem", "answer", "category", "cluster", "completion", "predicted"), text)
    task = task_record(2, num_asked=1, source=text, form=text, fingerprint=text, dropped=[text])
    fields = dict.fromkeys(("checkpoint", "checkpoint_digest", "engine", "protocol", "template"), text)
    evaluations = [
        write_evaluation(
            folder / name, {"counting": [graded(0, correct=correct, options={text: text}, **texts)]},
            {"counting": task}, image_size={text: 1}, **fields,
        )
        for name, correct in (("first", True), ("second", False))
    ]  # fmt: skip
    return Outline(render_evaluations(page_data(evaluations, with_images=False)))
