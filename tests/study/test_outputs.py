"""What is written of a study: figures, escapes, and the page in a browser."""

import html
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.pages.columns import unexplained_columns
from tests.study.stand_in_run import LEVELS, write_environment, write_run
from vgpo.study.folder import StudyRun
from vgpo.study.outputs import (
    escaped,
    grounding_cells,
    interval,
    markdown,
    rows_as_csv,
    terminal_tables,
    write_outputs,
)
from vgpo.study.page import render_study, study_verdict
from vgpo.study.results import Comparison, RunKey, strengths, study_data

HOSTILE = "<script>alert(1)</script>"


def study(tmp_path: Path, methods: tuple[str, ...] = ("dapo", "vgpo"), seeds: tuple[int, ...] = (0, 1, 2)) -> dict:
    places = [RunKey("default", "start", 0, tmp_path / "start")]
    places += [RunKey("default", method, seed, tmp_path / str(i) / str(seed)) for i, method in enumerate(methods)
               for seed in seeds]  # fmt: skip
    for place in places:
        write_run(place.path, place.method, place.seed)
    return study_data(places, [comparison(methods=list(methods))], name=f"trial {HOSTILE}")


def comparison(**changes: object) -> Comparison:
    fields = {"name": f"rivals {HOSTILE}", "question": f"Does it help, {HOSTILE}?", "base": "dapo",
              "methods": ["dapo", "vgpo"], "seeds": [0, 1, 2], "settings": ["default"]}  # fmt: skip
    return Comparison(**{**fields, **changes})


def test_figures_of_a_setting(tmp_path: Path) -> None:
    (setting,) = study(tmp_path)["comparisons"][0]["settings"]
    dapo, vgpo = setting["methods"]
    assert dapo["difference"] is None
    assert vgpo["accuracy"]["mean"] == vgpo["looks"]["accuracy_true"]["mean"] == pytest.approx(0.61)
    assert vgpo["difference"]["mean"] == pytest.approx(0.1)
    # Three seeds of one sign: 2 / 2^3.
    assert vgpo["difference"]["p_value"] == 0.25
    # Training accuracy is the held-out one times 0.1, 0.2 ... 1, and 1 from then on: 15.5 / 20 of it on average.
    assert vgpo["learning"]["mean"] == pytest.approx(0.1 * 15.5 / 20)
    assert dapo["learning"] is None
    assert vgpo["step_time"]["mean"] == pytest.approx(1.1)
    # The base ends at 0.51 on average; seed 0 stays at 0.50, seeds 1 and 2 are there from step 10 on, and their mean
    # with the step before (window 2) at 11.
    assert setting["target"] == pytest.approx(0.51)
    assert dapo["steps_to_base"] == {"mean": 11.0, "num_reached": 2}
    # 0.6 x 8/10 = 0.48 and 0.6 x 9/10 = 0.54 average 0.51 at step 9; the other seeds lie a little higher.
    assert vgpo["steps_to_base"] == {"mean": 9.0, "num_reached": 3}
    assert setting["start"]["accuracy"] == LEVELS["start"]
    assert vgpo["deciles"]["correct"][9] == pytest.approx(0.6 + 0.09 * 0.95)
    assert vgpo["deciles"]["wrong"] == [None] * 10
    assert vgpo["looks"]["late_early_wrong"] is None


def test_the_verdict_is_the_first_difference_to_a_base(tmp_path: Path) -> None:
    data = study(tmp_path, methods=("dapo", "vgpo", HOSTILE))
    verdict = study_verdict(data)
    assert verdict.headline == (
        "vgpo is 10.0 points above dapo on held-out accuracy [+10.0, +10.0] (default; 3 seeds, paired; p = 0.25)"
    )
    assert verdict.details == [
        "p is not below 0.05: the difference may be due to the choice of seeds. "
        "With 3 of them p cannot be below 0.25.",
        "The first of 2 differences to a base; p is not corrected for their number.",
    ]
    assert verdict.tone == "open"
    method = data["comparisons"][0]["settings"][0]["methods"][1]
    method["difference"] |= {"p_value": 0.01, "num_pairs": 9}
    assert study_verdict(data).tone == "gain"
    assert study_verdict({**data, "comparisons": []}).headline.startswith("No method can be compared yet")


def test_curves_have_bands(tmp_path: Path) -> None:
    (setting,) = study(tmp_path)["comparisons"][0]["settings"]
    charts = {chart["id"]: chart for chart in setting["charts"]}
    assert list(charts) == ["accuracy", "length", "entropy", "late_early", "token_factor"]
    line = charts["length"]["series"][1]
    assert line["run"] == 1
    assert line["steps"] == list(range(2, 21))  # window 2
    assert line["values"] == pytest.approx([step + 19.5 for step in range(2, 21)])
    entropy = charts["entropy"]["series"][0]
    assert entropy["values"][0] == pytest.approx(0.1)
    assert entropy["low"][0] < 0.09
    assert entropy["high"][0] > 0.11


def test_the_token_factors_of_all_shapings_are_in_one_chart(tmp_path: Path) -> None:
    (setting,) = study(tmp_path, methods=("dapo", "vgpo", HOSTILE))["comparisons"][0]["settings"]
    (chart,) = [chart for chart in setting["charts"] if chart["id"] == "token_factor"]
    assert [series["run"] for series in chart["series"]] == [1, 2]  # DAPO has no factor
    assert chart["series"][0]["values"] == pytest.approx([0.1] * 19)


def test_the_strengths_of_all_strata_have_columns():
    line = {"adaptive/strength/a/b": 0.5, "adaptive/strength/c": 1.0, "adaptive/strengths": 2.0}
    assert strengths(line) == {"strength_a/b": 0.5, "strength_c": 1.0}
    assert strengths({"adaptive/strength": 0.5}) == {"strength": 0.5}
    assert strengths({}) == {}


def test_missing_runs_and_a_single_seed(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "vgpo", 1)
    one = comparison(seeds=[0, 1], settings=["default", "other"])
    data = study_data([RunKey("default", "vgpo", 1, tmp_path / "run")], [one], name="one")
    setting, other = data["comparisons"][0]["settings"]
    assert setting["missing"] == [{"method": "dapo", "seeds": [0, 1]}, {"method": "vgpo", "seeds": [0]}]
    assert setting["methods"][0]["difference"] is None
    assert setting["methods"][0]["step_time"] is None
    assert other["methods"] == []
    text = markdown(data)
    assert "| vgpo | 1 | 61.0 | – | – | – | – | – (0 of 1) | – | – | – | – | – |" in text
    assert "Not done: dapo (seed 0, 1); vgpo (seed 0)." in text
    written = write_outputs(tmp_path / "out", data)
    assert {"page", "table"} <= written.keys()
    assert setting["target"] is None
    page = written["page"].read_text()
    assert '<td class="number none">–</td><td class="number none">–</td>' in page
    assert '<td class="number none">base</td>' not in page  # vgpo, whose base is not done, is not the base


def test_whether_it_looks_stands_alike_in_table_and_page(tmp_path: Path) -> None:
    data = study(tmp_path)
    text = markdown(data)
    assert "| start | 30.0 | 10.0 | 20.0 | 0.950 | – | 20.9 | 0.180 |" in text
    # Of 27 resample means the outer ones are 60.00 and 60.33; the quantile lies 0.65 into the gap.
    assert "| vgpo | 61.0 [60.2, 61.8] | 10.0 [10.0, 10.0] | 20.0 [20.0, 20.0] | 0.950 [0.950, 0.950] | – |" in text
    head, rows = grounding_cells(data["comparisons"][0]["settings"][0])
    _, table = render_study(data).split(": visual grounding")
    lines = [
        re.findall("<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL) for line in table.split("<tr")[1 : 2 + len(rows)]
    ]
    cells = [[re.sub("<[^>]*>", "", cell).strip() for cell in line] for line in lines]
    assert [cell.lower() for cell in cells[0]] == head
    assert [line[1:] for line in cells[1:]] == [row[1:] for row in rows]  # but for the names


def test_every_column_of_numbers_has_a_tooltip(tmp_path: Path) -> None:
    assert unexplained_columns(render_study(study(tmp_path))) == []


def test_intervals_as_text() -> None:
    assert interval({"mean": -0.01234, "low": -0.05, "high": 0.02}, 1, 100, signed=True) == "−1.2 [−5.0, +2.0]"
    assert interval({"mean": 0.5, "low": None, "high": None}, 2) == "0.50"
    assert interval(None, 1) == interval({"mean": None}, 1) == "–"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    data = study(tmp_path, methods=("dapo", HOSTILE))
    page = write_outputs(tmp_path / "out", data)["page"].read_text()
    assert len(re.findall("<script", page)) == 2  # data and code
    assert HOSTILE not in page
    assert escaped("a|b\n\x1b[0m\\") == "a\\|b [U+001B][0m\\\\"
    with Console(record=True, width=200) as console:
        for table in terminal_tables(data):
            console.print(table)
    assert HOSTILE in console.export_text()


def test_rows_as_files(tmp_path: Path) -> None:
    data = study(tmp_path)
    lines = rows_as_csv(data["rows"]).splitlines()
    assert lines[0].startswith("setting,method,seed,accuracy,accuracy_low,accuracy_high,num_questions,accuracy_true,")
    assert lines[0].endswith("jobs,commit,dirty")
    assert len(lines) == 8
    assert len({line.count(",") for line in lines}) == 1
    paths = write_outputs(tmp_path / "out", data)
    assert json.loads(paths["all that the page shows"].read_text())["rows"] == json.loads(
        paths["rows as JSON"].read_text()
    )


def test_a_seal_holds_for_its_files_only(tmp_path: Path) -> None:
    run = StudyRun(tmp_path / "run")
    write_run(run.path, "dapo", 0)
    (run.path / "done.json").unlink()
    assert not run.is_done
    run.seal()
    assert run.is_done
    assert run.changed_files() == []
    (run.path / "probe.json").unlink()
    (run.path / "usage.json").write_text("{}")
    assert run.changed_files() == ["probe.json", "usage.json"]


def test_runs_of_two_comparisons_stand_in_both(tmp_path: Path) -> None:
    places = [RunKey("default", method, seed, tmp_path / method / str(seed))
              for method in ("dapo", "vgpo") for seed in (0, 1, 2)]  # fmt: skip
    for place in places:
        write_run(place.path, place.method, place.seed)
    turned = comparison(name="turned", base="vgpo", methods=["vgpo", "dapo"], seeds=[1, 2], question=None)
    data = study_data(places, [comparison(), turned], name="two")
    assert len(data["rows"]) == 6
    assert len(data["curves"]) == 6 * 20
    assert data["curves"][0] == {
        "setting": "default", "method": "dapo", "seed": 0, "step": 1, "accuracy": pytest.approx(0.05), "length": 21.0,
        "entropy": 0.0, "late_early": 0.9, "token_factor": None, "tokens": None, "positive_mass": None,
        "negative_mass": None, "compensation": None, "text_only_accuracy": None,
    }  # fmt: skip
    shaped = {"token_factor": 0.1, "tokens": 100.0, "positive_mass": 1.1, "negative_mass": 0.9}
    assert data["curves"][60].items() >= shaped.items()
    (there,), (back,) = ([setting["methods"] for setting in one["settings"]] for one in data["comparisons"])
    assert there[1]["difference"]["mean"] == pytest.approx(0.1)
    assert back[1]["difference"]["mean"] == pytest.approx(-0.1)
    assert (there[1]["num_runs"], back[1]["num_runs"]) == (3, 2)
    text = markdown(data)
    assert "Base dapo; seeds 0, 1, 2, with which p cannot be below 0.25." in text
    assert "Base vgpo; seeds 1, 2, with which p cannot be below 0.5." in text
    page = write_outputs(tmp_path / "out", data)["page"].read_text()
    assert re.findall('<h2 id="comparison-.">(.*)</h2>', page) == [f"rivals {html.escape(HOSTILE)}", "turned"]
    assert re.findall('href="#comparison-(.)"', page) == ["0", "1"]
    assert page.count('<td class="number none">base</td>') == 2 * 2  # difference and learning, in each


def test_p_says_how_many_pairs_it_comes_from(tmp_path: Path) -> None:
    places = [RunKey("default", method, seed, tmp_path / method / str(seed))
              for method, seeds in (("dapo", (0, 1, 2)), ("vgpo", (1, 2))) for seed in seeds]  # fmt: skip
    for place in places:
        write_run(place.path, place.method, place.seed)
    assert "| 0.5 (2 pairs) |" in markdown(study_data(places, [comparison()], name="one"))


def test_runs_that_are_hard_to_compare_are_told(tmp_path: Path) -> None:
    data = study(tmp_path)
    assert data["cautions"] == []
    run = tmp_path / "1" / "2"  # vgpo, seed 2
    usage = {"peak_memory_bytes": 5e9, "memory_of": "a GPU", "jobs": 2}
    (run / "usage.json").write_text(json.dumps(usage))
    write_environment(run, commit="1" * 40, dirty=True)
    places = [RunKey("default", method, seed, tmp_path / str(i) / str(seed))
              for i, method in enumerate(("dapo", "vgpo")) for seed in (0, 1, 2)]  # fmt: skip
    data = study_data(places, [comparison()], name="one")
    assert [caution.split(";")[0].split(",")[0] for caution in data["cautions"]] == [
        "The runs were made by different commits of the code",
        "Some runs were made with changes to the code that are in no commit (code.diff in their folders).",
        "The runs were made on different devices",
        "Runs shared the machine with others",
    ]
    # Bytes of a GPU and of a process are not comparable.
    memory = data["comparisons"][0]["settings"][0]["methods"][1]["memory"]
    assert (memory["mean"], memory["num_seeds"]) == (1.0, 2)
    assert all(caution in markdown(data) for caution in data["cautions"])
    assert all(html.escape(caution) in render_study(data) for caution in data["cautions"])
