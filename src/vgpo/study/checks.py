"""Checks before the first run of a study: the contents of its folder, and runs that would fail at their start."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vgpo.checkpoints.store import file_entry
from vgpo.data import template_text
from vgpo.data.sources import name_and_split
from vgpo.places import TOY_MODEL
from vgpo.recipe.adapters import Source, with_bases
from vgpo.recipe.checks import examine_all, failures
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import read_mapping, with_current_names
from vgpo.recipe.identity import digest, source_digest
from vgpo.recipe.recipe import Recipe
from vgpo.recipe.setup import Setup
from vgpo.run.storage import read_object, to_json, write_file
from vgpo.study.file import PlannedRun, Study, StudyError, differing, run_label
from vgpo.study.folder import StudyRun
from vgpo.study.jobs import folder_of
from vgpo.study.results import INITIAL
from vgpo.study.suite import StudySuite, fields_not_taken, read_suite, suite_faults, suite_files

INPUTS_FILE = "inputs.json"
INPUTS_FILE_0_1 = "ground.json"  # its name in version 0.1
# Checks of `vgpo train` before it loads a model: common to all methods of a setting, and per method.
OF_SETTING = ("versions", "processor", "data", "held-out data", "benchmarks", "batches", "rewards")
OF_METHOD = ("processes", "generation", "reference model", "trackers", "packages")


def check_runs_match(study: Study, out: Path) -> None:
    """Check that the runs in the folder belong to this study; runs that it no longer names, or that never began, are
    ignored.

    Raises:
        StudyError: Some have other recipes, or were changed after they were done; names them and the differences.
    """
    faults = [
        f"  {one.path}: {fault}"
        for planned in study.runs
        if (one := folder_of(out, planned)).has_begun and (fault := fault_of(one, planned, study.suite))
    ]
    if faults:
        listed = "\n".join(faults)
        raise StudyError(
            f"not all runs in {out} are of this study:\n{listed}\nUndo the change, delete these runs so that they are "
            "trained again, or choose another --out"
        )


def fault_of(one: StudyRun, planned: PlannedRun, suite: StudySuite | None) -> str | None:
    """Why a run that began is not the one that is planned, or is not evaluated as planned."""
    found = with_current_names(read_mapping(one.recipe_path)) if one.recipe_path.is_file() else planned.values
    if changed := differing(found, planned.values):
        return f"a run with other settings ({', '.join(changed)})"
    sets = read_mapping(one.held_out_path) if one.held_out_path.is_file() else {}
    if one.is_done and set(sets) != set(planned.held_out_sets):
        return f"evaluated on other held-out sets ({', '.join(sorted(set(sets) ^ set(planned.held_out_sets)))})"
    if one.evaluation.exists and one.suite_path.is_file():
        evaluated = read_suite(read_mapping(one.suite_path), str(one.suite_path)).compared
        if changed := differing(evaluated, suite.compared if suite else {}):
            return f"evaluated on another suite ({', '.join(changed)})"
    if one.is_done and (files := one.changed_files()):
        return f"{', '.join(files)} changed after the run was done"
    return None


def check_inputs_unchanged(study: Study, out: Path) -> None:
    """Check that start model, data, benchmarks, template and rewards on this machine are unchanged since the first
    runs.

    Missing files are not compared, and their digests are kept.

    Raises:
        StudyError: Files at their paths have changed; names setting and field.
    """
    path = out / INPUTS_FILE
    recorded = next((read_object(found) for found in (path, out / INPUTS_FILE_0_1) if found.is_file()), {})
    begun = {planned.setting for planned in study.runs if folder_of(out, planned).has_begun}
    known = {setting: digests for setting, digests in recorded.items() if setting in begun}
    benchmarks = suite_digests(study.suite) if study.suite else {}
    now = {
        setting: input_digests(recipe) | benchmarks
        for (setting, method), recipe in study.recipes.items()
        if method == INITIAL
    }
    changed = [
        f"  setting {setting}: {name}"
        for setting, digests in now.items()
        for name, digest in digests.items()
        if known.get(setting, {}).get(name, digest) != digest
    ]
    if changed:
        listed = "\n".join(changed)
        raise StudyError(
            f"other contents than when the runs in {out} began:\n{listed}\nRestore it, or choose another --out"
        )
    joined = {setting: {**known.get(setting, {}), **digests} for setting, digests in now.items()}
    write_file(path, to_json({**recorded, **joined}, indent=2) + b"\n")


def input_digests(recipe: Recipe) -> dict[str, str]:
    """Field -> SHA-256 of its file, for fields that all methods share and that name files."""
    run, model = recipe.run, str(recipe.model.model_name_or_path)
    sources = {"train_data": run.train_data, "eval_data": run.eval_data}
    paths = {name: Path(name_and_split(source)[0]).expanduser() for name, source in sources.items() if source}
    if model != TOY_MODEL:
        paths["model_name_or_path"] = Path(model)
        paths |= {f"model_name_or_path, base {n}": path for n, path in enumerate(bases_of(model), start=1)}
    found = {name: digest_of(path) for name, path in paths.items() if path.exists()}
    if Path(run.template).expanduser().is_file():
        found["template"] = digest(template_text(run.template))
    return found | {f"reward {name}": text for name in run.rewards if (text := source_digest(name))}


def suite_digests(suite: StudySuite) -> dict[str, str]:
    """SHA-256 of the rows of each task whose rows are on this machine; each file is read once."""
    files = suite_files(suite)
    digests = {path: digest_of(path) for path in set(files.values())}
    return {f"suite, data of {task}": digests[path] for task, path in files.items()}


def bases_of(model: str) -> list[Path]:
    """The bases of an adapter in a folder, nearest first; a missing one is reported at the start of a run."""
    with suppress(RecipeError):
        chain = with_bases(Source(model), trust_remote_code=False) if Path(model).is_dir() else []
        return [Path(base.name) for base in chain[1:]]
    return []


def digest_of(path: Path) -> str:
    """Digest of a file, or of names and contents of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    lines = [f"{file.relative_to(path)} {file_entry(file)['sha256']}" for file in files]
    return digest("\n".join(lines))


def check_runs_can_start(
    study: Study, todo: Sequence[PlannedRun], written: Mapping[str, Mapping[str, Any]], out: Path
) -> None:
    """Check that the runs can start, with the checks of each run before it loads a model.

    Args:
        study: Which they are of.
        todo: The runs to make.
        written: By setting, the fields whose data are files of the study.
        out: Its folder.

    Raises:
        StudyError: Some cannot start; names every fault and its place.
    """
    recipes = {(planned.setting, planned.method): study.recipes[planned.setting, planned.method] for planned in todo}
    places: dict[str, list[str]] = {}
    for setting, recipe in {setting: recipe for (setting, _), recipe in recipes.items()}.items():
        on_disk = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, **written[setting]))
        for fault in failures(examine_all(OF_SETTING, Setup(on_disk, out))):
            places.setdefault(fault, []).append(f"setting {setting}")
        if study.suite and (names := fields_not_taken(recipe)):
            fault = f"suite cannot be evaluated with {', '.join(names)}; remove these fields, or suite"
            places.setdefault(fault, []).append(f"setting {setting}")
    for fault, key in suite_faults(study.suite).items() if study.suite and todo else ():
        places.setdefault(fault, []).append(f"suite: {key}")
    launched = {planned.setting for planned in todo if planned.launch}
    for place, recipe in recipes.items():
        is_launched = place[0] in launched
        names = [name for name in OF_METHOD if name != "processes" or not is_launched]
        faults = failures(examine_all(names, Setup(recipe, out)))
        if is_launched and recipe.run.eval_suite:
            faults.append("eval_suite is for runs of one process, and this one is launched; remove it")
        for fault in faults:
            places.setdefault(fault, []).append(run_label(*place))
    if places:
        listed = "\n".join(
            f"  {first}{f' (and {len(others)} more)' if others else ''}: {fault}"
            for fault, (first, *others) in places.items()
        )
        raise StudyError(f"{study.path}: no run was started because these would fail:\n{listed}")
