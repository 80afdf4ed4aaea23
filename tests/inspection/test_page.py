"""The page of an inspection, from its dict and from nothing else."""

import base64
import json
import re
import zlib
from statistics import fmean

import numpy as np
import pytest

from tests.hostile.checks import Outline
from tests.hostile.texts import NASTY
from tests.inspection import made
from tests.pages.columns import unexplained_columns
from vgpo.inspection import maps
from vgpo.inspection.maps import FINENESSES, Fineness, average, pack_map, pack_maps, packed_at, read_map, size_of
from vgpo.inspection.page import inspection_verdict, page_data, render_inspection, short
from vgpo.inspection.summary import difference, distribution, mean_deciles, paired_verdicts, summarise
from vgpo.text import visible

MAX_PAGE_BYTES = 5_000_000


def embedded(page: str) -> dict:
    return json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)[1])


def unpacked(packed: dict) -> np.ndarray:
    changes = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), dtype=np.uint8)
    return changes.reshape(-1, packed["cells"]).cumsum(axis=0, dtype=np.uint8)


def test_every_column_of_numbers_has_a_tooltip():
    assert unexplained_columns(render_inspection(made.odd())) == []


def test_numbers_on_the_page_are_those_of_the_file():
    data = made.odd()
    page = embedded(render_inspection(data))
    assert page == json.loads(json.dumps(page_data(data)))
    assert page["num_questions"] == len(page["questions"]) == len(data["questions"])
    for shown, question in zip(page["questions"], data["questions"], strict=True):
        for name in ("row", "problem", "answer", "kind", "images"):
            assert shown[name] == question[name]
        for ours, theirs in zip(shown["rollouts"], question["rollouts"], strict=True):
            for name in ("model", "sample", "correct", "predicted", "tokens", "rollout_factor", "late_early_ratio"):
                assert ours[name] == theirs[name]
            for name in ("similarity", "focus", "weight", "token_factor", "advantage"):
                assert ours[name] == (None if theirs[name] is None else pytest.approx(theirs[name], abs=5.1e-5))
            assert ours["gate"] == (theirs["gate"] or [])
            assert (ours["attention"] is None) == (theirs["attention"] is None)


def test_the_page_is_drawn_from_the_file_alone():
    data = made.odd()
    assert render_inspection(json.loads(json.dumps(data))) == render_inspection(data)


def test_small_maps_come_through_whole():
    data = made.odd()
    fineness, packed = pack_maps(data["questions"])
    assert fineness == (256, 1)
    for question, packed_maps in zip(data["questions"], packed, strict=True):
        order = [token for grid in question["grids"] for token in grid["tokens"]]
        for rollout, one in zip(question["rollouts"], packed_maps, strict=True):
            assert (one is None) == (rollout["patches"] is None)
            if one is not None:
                assert np.array_equal(unpacked(one), np.round(read_map(rollout["patches"])[:, order] * 255))
                assert (one["low"], one["high"]) == (rollout["patches"]["low"], rollout["patches"]["high"])


def test_maps_become_coarser_until_they_fit():
    questions = made.odd()["questions"]
    sizes = []
    for fineness in FINENESSES:
        budget = sizes[-1] - 1 if sizes else 10**9
        found, packed = pack_maps(questions, budget)
        assert found == fineness
        sizes.append(sum(len(one["data"]) for maps in packed for one in maps if one is not None))
    assert pack_maps(questions, 0)[0] == FINENESSES[-1] == Fineness(32, 8)


def test_the_step_to_begin_with_is_told_from_a_few_of_many(monkeypatch: pytest.MonkeyPatch):
    questions = [made.without_picture(), *(made.question(row) for row in range(40)), made.without_picture()]
    whole, packed = pack_maps(questions, 10**9)
    size = size_of(packed)
    assert whole == FINENESSES[0]
    tried = []
    monkeypatch.setattr(maps, "packed_at", lambda step, some: tried.append((step, len(some))) or packed_at(step, some))
    found, packed = pack_maps(questions, size // 2)
    assert size_of(packed) <= size // 2
    assert next(step for step, number in tried if number == 42) != FINENESSES[0]
    assert tried[-1] == (found, 42)


def exact_cells(values: np.ndarray, grids: list[dict], block: int) -> list[np.ndarray]:
    """Of each grid, the means over its blocks; (T, blocks)."""
    return [average(values[:, one["tokens"]], one, block) for one in grids]


@pytest.mark.parametrize("fineness", FINENESSES)
def test_peaks_are_the_highest_cells_at_every_fineness(fineness: Fineness):
    grids = [made.grid(rows=3, columns=5), made.grid(rows=4, columns=4, first=16)]  # column 15 stands nowhere
    values = np.random.default_rng(1).normal(size=(20, 32))
    values[1:] /= 1000  # within a level or two of the file
    patches = made.pack(values, grids)
    packed = pack_map(patches, grids, fineness)
    # The file knows the values from before they became bytes; blocks are means of its bytes.
    known = values if fineness.block == 1 else read_map(patches)
    with_mean = np.concatenate([known, known.mean(axis=0, keepdims=True)])
    first, second = exact_cells(with_mean, grids, fineness.block)
    for one, other, peaks in zip(first, second, packed["peaks"], strict=True):
        tops = [(one.max(), one.argmax()), (other.max(), first.shape[1] + other.argmax())]
        assert peaks == [cell for _, cell in sorted(tops, key=lambda top: -top[0])]


@pytest.mark.parametrize("block", [1, 2, 4, 8])
def test_blocks_are_means_of_their_cells(block: int):
    grid = made.grid(rows=5, columns=3)
    values = np.random.default_rng(0).random((4, 15))
    naive = [
        [
            fmean(
                values[token, row * 3 + column]
                for row in range(top, min(top + block, 5))
                for column in range(left, min(left + block, 3))
            )
            for top in range(0, 5, block)
            for left in range(0, 3, block)
        ]
        for token in range(4)
    ]
    assert average(values, grid, block) == pytest.approx(np.array(naive))


def test_deciles_have_the_normal_interval_of_their_mean():
    found = mean_deciles([[0.2] * 10, [0.4] * 10, [0.6]])
    # mean of 0.2, 0.4, 0.6 in the first tenth: 0.4 +- 1.959964 * 0.2 / sqrt(3) = 0.4 +- 0.2263
    assert (found["values"][0], found["low"][0], found["high"][0]) == (0.4, 0.1737, 0.6263)
    # 0.3 +- 1.959964 * 0.141421 / sqrt(2) = 0.3 +- 0.1960 in the others
    assert (found["values"][9], found["low"][9], found["high"][9]) == (0.3, 0.104, 0.496)
    assert found["num_rollouts"] == 3
    assert mean_deciles([[0.25]]) == {
        "num_rollouts": 1,
        "values": [0.25, *[None] * 9],
        "low": [None] * 10,
        "high": [None] * 10,
    }


def test_distribution_of_ratios():
    assert distribution([]) is None
    assert distribution([1.5]) == {"values": [1.5], "mean": 1.5, "low": 1.5, "median": 1.5, "high": 1.5}
    five = distribution([3.0, 1.0, 2.0, 5.0, 4.0])
    assert five == {"values": [1.0, 2.0, 3.0, 4.0, 5.0], "mean": 3.0, "low": 2.0, "median": 3.0, "high": 4.0}


def test_figures_of_a_model():
    kept = {"predicted": "2", "correct": True}
    lost = {"predicted": None, "correct": False}
    again = {"blank": {"text": "", **lost}, "other": {"text": "", **kept}}
    rollouts = [
        made.rollout(1, correct=True, predicted="2", focus=[0.5, 0.7], late_early_ratio=1.4, without=again),
        made.rollout(1, correct=False, predicted="3", focus=[None, 0.4], late_early_ratio=0.8, without=again),
        made.rollout(1, correct=False, truncated=True, without=None, attention=None),
        made.rollout(0),
    ]
    found = summarise(1, [made.question(0, rollouts[:2]), made.question(1, rollouts[2:]), made.without_picture()])
    assert (found["num_rollouts"], found["num_correct"], found["num_truncated"]) == (4, 1 + 1, 1)
    assert found["focus"] == pytest.approx(fmean([0.6, 0.4, fmean(rollouts[2]["focus"])]))
    assert found["outcomes"]["correct"]["late_early"]["values"] == [1.4]
    assert found["outcomes"]["wrong"]["late_early"]["values"] == [
        0.8,
        pytest.approx(rollouts[2]["late_early_ratio"], abs=5.1e-5),
    ]
    assert found["attention"]["image"]["num_rollouts"] == 2
    assert found["without"]["blank"] == {
        "num_rollouts": 2, "num_correct_before": 1, "num_correct": 0, "num_changed": 2
    }  # fmt: skip
    assert found["without"]["other"] == {
        "num_rollouts": 2, "num_correct_before": 1, "num_correct": 2, "num_changed": 1
    }  # fmt: skip
    assert summarise(0, [made.without_picture()])["without"] is summarise(0, [made.without_picture()])["focus"] is None


def test_differences_between_models():
    def asked(first: list[bool], second: list[bool]) -> dict:
        rollouts = [
            made.rollout(model, correct=correct, focus=[0.5 + 0.1 * model])
            for model, verdicts in enumerate((first, second))
            for correct in verdicts
        ]
        return made.question(0, rollouts)

    questions = [asked([True], [True]), asked([True, True], [True, False]), asked([False], [True]), asked([], [True])]
    assert [difference(question)["correct"] for question in questions] == [0.0, -0.5, 1.0, None]
    assert [difference(question)["focus"] for question in questions] == [pytest.approx(0.1)] * 3 + [None]
    assert paired_verdicts(questions) == {"both": 1, "first": 1, "second": 1, "neither": 0}


@pytest.mark.parametrize(
    ("responses", "told"),
    [
        ({"temperature": 0.0}, "greedy answers of at most 64 tokens"),
        ({"temperature": 0.7, "seed": 3}, "answers of at most 64 tokens, sampled at temperature 0.7, seed 3"),
        ({"from": "rollouts", "steps": [20, 80]}, "rollouts that the run drew and stored at steps 20 to 80, read by"),
        ({"from": "rollouts", "steps": [80, 80]}, "rollouts that the run drew and stored at step 80, read by"),
    ],
)
def test_the_page_says_where_responses_come_from(responses: dict, told: str):
    data = made.inspection([made.question()])
    data["responses"] |= responses
    page = render_inspection(data)
    assert page.count(told) == 2  # at the head and among the settings
    sampled = responses.get("temperature") != 0.0
    assert ("Sampled responses, so correct is a mean over samples" in page) == sampled
    assert ("is not the accuracy of this checkpoint" in page) == (data["responses"]["from"] == "rollouts")


def test_what_changes_by_drawing_again_stands_beside_what_changes_by_pictures():
    answers = {name: {"text": "", "predicted": text, "correct": False} for name, text in zip("ab", "23", strict=True)}
    without = {"blank": answers["b"], "other": answers["b"], "again": answers["a"]}
    rollouts = [made.rollout(0, sample=n, predicted="23"[n % 2], correct=False, without=without) for n in range(3)]
    page = render_inspection(made.inspection([made.question(0, rollouts)], ("one",)))
    [row] = re.findall(r"<td>the same image, sampled again</td>(.*?)</tr>", page, re.DOTALL)
    assert '<b>33.3</b> <span class="range">1 of 3</span>' in row
    assert "Only what changes more often than that can be due to the image" in page
    greedy = render_inspection(made.odd())
    assert re.findall("sampled again", greedy, re.IGNORECASE) == []
    assert "Only what changes more often" not in greedy


def test_figures_stand_in_the_tables():
    rollouts = [made.rollout(0, correct=row < 2, predicted="2" if row < 2 else "3", seed=row) for row in range(3)]
    data = made.inspection([made.question(row, [rollout]) for row, rollout in enumerate(rollouts)], ("vgpo",))
    page = render_inspection(data)
    assert '<b>66.7</b> <span class="range">2 of 3</span>' in page  # correct
    assert '<b>0.0</b> <span class="range">0 of 3</span>' in page  # with a blank image
    assert '<b>33.3</b> <span class="range">1 of 3</span>' in page  # changed by another question's image
    [model] = page_data(data)["models"]
    assert f'<td class="number">{model["focus"]:.3f}</td>' in page
    ratios = model["outcomes"]["correct"]["late_early"]
    spread = f"[{ratios['low']:.3f}, {ratios['high']:.3f}]"
    assert f'<b>{ratios["median"]:.3f}</b> <span class="range">{spread}</span>' in page
    deciles = model["outcomes"]["correct"]["deciles"]
    bounds = f"[{deciles['low'][0]:.3f}, {deciles['high'][0]:.3f}]"
    assert f'<td class="number">{deciles["values"][0]:.3f} <span class="range">{bounds}</span></td>' in page
    assert page.count('data-changed="yes"') == 3


def test_the_verdict_counts_correct_responses_with_and_without_the_image():
    rollouts = [made.rollout(0, correct=row < 2, predicted="2" if row < 2 else "3", seed=row) for row in range(3)]
    data = made.inspection([made.question(row, [rollout]) for row, rollout in enumerate(rollouts)], ("vgpo",))
    expected = "vgpo: 66.7 % of 3 responses are correct, with a blank image 0.0 %"
    assert inspection_verdict(page_data(data)["models"]).headline == expected
    assert Outline(render_inspection(data)).texts_of("h2")[0] == expected
    two = made.inspection([made.without_picture()])
    assert inspection_verdict(page_data(two)["models"]).headline.count(" % of 1 responses are correct") == 2
    assert inspection_verdict(page_data(made.inspection([]))["models"]).headline == "This inspection holds no response"


def hostile(text: str) -> dict:
    again = {"text": text, "predicted": text, "correct": False}
    one = made.rollout(0, 1, tokens=[text], text=text, predicted=text, without={"blank": again, "other": again})
    grids = [made.grid(name=text)]
    data = made.inspection([made.question(0, [one], problem=text, answer=text, kind=text, grids=grids)], (text,))
    data["models"][0] |= {"path": text, "family": text}
    return data


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nasty_text_stays_text(text: str):
    outline = Outline(render_inspection(hostile(text)))
    assert outline.elements == Outline(render_inspection(hostile("plain"))).elements
    assert outline.other == []
    assert outline.texts_of("code") == [visible(short(text))]
    [question] = json.loads(outline.texts_of("script")[0])["questions"]
    assert question["rollouts"][0]["tokens"][0].startswith(text[:400])
    assert question["problem"] == question["answer"] == text


def test_the_page_asks_nothing_of_the_network():
    page = render_inspection(made.odd())
    without_data = re.sub(r'id="report-data">.*?</script>', "></script>", page, flags=re.DOTALL)
    assert re.findall(r"https?:|\bsrc=|\bhref=|url\(|@import", without_data) == []
    [policy] = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_fifty_responses_stay_under_five_megabytes():
    questions = [
        made.question(
            row,
            [made.rollout(model, 300, 256, seed=2 * row + model) for model in (0, 1)],
            grids=[made.grid(rows=16, columns=16)],
            images=[made.picture(row, 512, 384)],
        )
        for row in range(25)
    ]
    page = render_inspection(made.inspection(questions))
    data = embedded(page)
    assert len(page.encode()) < MAX_PAGE_BYTES
    assert len(data["questions"]) == 25
    assert data["block"] == 1
    assert f"rounded to {data['levels']} levels" in page


def test_questions_that_do_not_fit_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch):
    data = made.inspection([made.question(row) for row in range(6)])
    size = len(json.dumps(page_data(data)["questions"]))
    monkeypatch.setattr("vgpo.inspection.page.QUESTION_BYTES", size // 2)
    page = render_inspection(data)
    assert "3 questions do not fit into the page" in page
    assert [question["number"] for question in embedded(page)["questions"]] == [0, 1, 2]
    assert embedded(page)["models"][0]["num_rollouts"] == 6


def test_long_texts_are_cut():
    long = "word " * 200_000
    page = render_inspection(hostile(long))
    assert len(page) < 200_000
    assert "more characters]" in embedded(page)["questions"][0]["problem"]


def test_an_inspection_without_questions_says_so():
    page = render_inspection(made.inspection([]))
    assert "This inspection holds no question." in page
    assert embedded(page)["questions"] == []
