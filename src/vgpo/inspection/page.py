"""The page of an inspection: one HTML file that needs no network, drawn from the file's dict and from nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from vgpo.inspection.maps import pack_maps
from vgpo.inspection.schema import ATTENDED, BLANK, OTHER, PER_TOKEN, RESAMPLED
from vgpo.inspection.summary import difference, paired_verdicts, summarise
from vgpo.pages import CHART_SCRIPTS, SHARED, embed_json, inlined, page_environment
from vgpo.pages.texts import (
    MAX_TEXT_CHARACTERS,
    MAX_TOKEN_CHARACTERS,
    MAX_TOKENS,
    date,
    fixed,
    percent,
    rounded,
    truncate,
)
from vgpo.pages.verdict import Verdict, quoted

TEMPLATES = Path(__file__).parent / "templates"
SHARED_SCRIPTS = ("elements.js", "tables.js", *CHART_SCRIPTS, "tokens.js")
SCRIPTS = ("patches.js", "panes.js", "questions.js", "curves.js", "main.js")
QUESTION_BYTES = 4_600_000  # of all questions of a page together
MAX_NAME_CHARACTERS = 200
MAX_ANSWERS = 200  # rows of the table of answers without the image
MEASURES = tuple(name for name in PER_TOKEN if name != "gate")  # which is a sign and no number
# What is asked with in place of the true image: in full, and at the head of a column.
IN_PLACE = {
    BLANK: ("a blank one", "Blank"),
    OTHER: ("another question’s", "Another’s"),
    RESAMPLED: ("the same image, sampled again", "Sampled again"),
}


def render_inspection(data: Mapping[str, Any]) -> str:
    """Draw an inspection as one self-contained HTML page of at most 5 MB.

    All text in it is escaped, and no script but the page's own can run.

    Args:
        data: the content of an inspection's file (docs/inspect.md).

    Returns:
        str: the page. Where an inspection is too large for a page, its maps are kept more coarsely first, then
        questions are left out of the browser; both are said on the page. Figures and curves are of all rollouts.
    """
    environment = page_environment(PackageLoader("vgpo.inspection"))
    environment.filters.update(percent=percent, fixed=fixed, date=date, short=short)
    scripts = [*(SHARED / name for name in SHARED_SCRIPTS), *(TEMPLATES / name for name in SCRIPTS)]
    page = page_data(data)
    asked_with = [name for name in IN_PLACE if any(name in (model["without"] or ()) for model in page["models"])]
    return environment.get_template("inspection.html.jinja").render(
        data=data,
        page=page,
        found=inspection_verdict(page["models"]),
        responses=about_responses(data["responses"]),
        sampled=data["responses"]["from"] == "rollouts" or data["responses"]["temperature"] > 0,
        asked_with={name: IN_PLACE[name] for name in asked_with},
        answers=ablated_answers(data["questions"]),
        max_answers=MAX_ANSWERS,
        embedded=embed_json(page),
        **inlined([SHARED / "page.css", TEMPLATES / "inspection.css"], scripts),
    )


def inspection_verdict(models: Sequence[Mapping[str, Any]]) -> Verdict:
    """How many responses are correct, and how many without the image."""
    parts = []
    for model in models:
        if not model["num_rollouts"]:
            continue
        share = percent(model["num_correct"] / model["num_rollouts"])
        part = f"{quoted(model['name'])}: {share} % of {model['num_rollouts']:,} responses are correct"
        blank = (model["without"] or {}).get(BLANK)
        if blank and blank["num_rollouts"]:
            part += f", with a blank image {percent(blank['num_correct'] / blank['num_rollouts'])} %"
        parts.append(part)
    return Verdict("open", "; ".join(parts) or "This inspection holds no response")


def page_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the page's script draws.

    Returns:
        dict: `models`: `name` and the figures of `vgpo.inspection.summary.summarise`; `verdicts`: see
        `paired_verdicts`, None for one model; `levels` and `block`: fineness of the maps; `num_questions` of the
        inspection; `questions`: those that fit, each as `question_entry` makes it.
    """
    questions = data["questions"]
    models = [{"name": short(model["name"]), **summarise(i, questions)} for i, model in enumerate(data["models"])]
    fineness, maps = pack_maps(questions)
    entries = []
    room = QUESTION_BYTES
    for number, (question, packed) in enumerate(zip(questions, maps, strict=True)):
        entry = question_entry(number, question, packed, len(models))
        size = len(embed_json(entry))
        if size <= room:
            room -= size
            entries.append(entry)
    return {
        "models": models,
        "verdicts": paired_verdicts(questions) if len(models) == 2 else None,
        "levels": fineness.levels,
        "block": fineness.block,
        "num_questions": len(questions),
        "questions": entries,
    }


def question_entry(
    number: int, question: Mapping[str, Any], maps: Sequence[dict[str, Any] | None], num_models: int
) -> dict[str, Any]:
    """What the browser shows of question `number`: long texts cut, numbers rounded, maps packed."""
    return {
        "number": number,
        "row": question["row"],
        "problem": truncate(question["problem"], MAX_TEXT_CHARACTERS),
        "answer": truncate(question["answer"], MAX_TEXT_CHARACTERS),
        "kind": short(question["kind"]),
        "images": question["images"],
        "grids": [grid_entry(grid) for grid in question["grids"]],
        "difference": difference(question) if num_models == 2 else None,
        "rollouts": [rollout_entry(one, packed) for one, packed in zip(question["rollouts"], maps, strict=True)],
    }


def about_responses(responses: Mapping[str, Any]) -> str:
    """Where the responses come from, in the words of the page."""
    if responses["from"] == "rollouts":
        first, last = responses["steps"]
        when = f"step {last}" if first == last else f"steps {first} to {last}"
        return f"rollouts that the run drew and stored at {when}, read by this checkpoint"
    limit = f"of at most {responses['max_new_tokens']} tokens"
    if responses["temperature"] == 0:
        return f"greedy answers {limit}"
    return f"answers {limit}, sampled at temperature {responses['temperature']}, seed {responses['seed']}"


def grid_entry(grid: Mapping[str, Any]) -> dict[str, Any]:
    name = short(grid.get("name", "whole"))
    return {"name": name, **{key: grid[key] for key in ("image", "box", "rows", "columns")}}


def rollout_entry(rollout: Mapping[str, Any], packed: dict[str, Any] | None) -> dict[str, Any]:
    attention = rollout["attention"]
    return {
        **{name: rollout[name] for name in ("model", "sample", "correct", "truncated")},
        "predicted": short(rollout["predicted"]),
        "tokens": [truncate(token, MAX_TOKEN_CHARACTERS) for token in rollout["tokens"][:MAX_TOKENS]],
        "num_tokens": len(rollout["tokens"]),
        "gate": [int(passed) for passed in (rollout["gate"] or [])[:MAX_TOKENS]],
        **{name: None if rollout[name] is None else rounded(rollout[name]) for name in MEASURES},
        "attention": attention and {source: rounded(attention[source]) for source in ATTENDED},
        "rollout_factor": rollout["rollout_factor"],
        "late_early_ratio": rollout["late_early_ratio"],
        "map": packed,
    }


def ablated_answers(questions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rollouts whose question was also answered with other images; those with a changed answer first."""
    answers = [
        {
            "number": number,
            "row": question["row"],
            "problem": question["problem"],
            "answer": question["answer"],
            "rollout": rollout,
            "changed": [
                name
                for name, again in rollout["without"].items()
                if again and again["predicted"] != rollout["predicted"]
            ],
        }
        for number, question in enumerate(questions)
        for rollout in question["rollouts"]
        if rollout["without"]
    ]
    return sorted(answers, key=lambda answer: not answer["changed"])


def short(text: str | None) -> str | None:
    return None if text is None else truncate(text, MAX_NAME_CHARACTERS)
