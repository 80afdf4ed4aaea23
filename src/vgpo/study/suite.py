"""The benchmarks of a study: settings in its file, checks, and the evaluation of a run."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vgpo.data import DataError
from vgpo.data.files import expanded, is_folder
from vgpo.data.sources import name_and_split
from vgpo.evaluation.benchmark_rows import load_benchmark, located, source_of
from vgpo.evaluation.benchmarks import Benchmark
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.protocols import protocol_named
from vgpo.evaluation.scorers import check_scorer
from vgpo.recipe.files import read_mapping
from vgpo.recipe.recipe import Recipe
from vgpo.recipe.suite_settings import asked_benchmarks, suite_benchmarks, suite_sources
from vgpo.study.folder import StudyRun
from vgpo.suite.choices import DEFAULT_SUITE, check_runner
from vgpo.text import did_you_mean

# Recipe fields that checkpoint evaluation ignores, each with its neutral value.
NOT_TAKEN: dict[str, tuple[Any, ...]] = {
    "model_revision": ("main", None),
    "trust_remote_code": (False,),
    "chat_template_kwargs": (None, {}),
}


@dataclass(frozen=True, kw_only=True)
class StudySuite:
    """Benchmarks and settings of the evaluation after each training of a study.

    Attributes:
        tasks: Names of tasks or suites, or one such name.
        data: A folder with the data of the tasks, or the source of each; None for the original sets on the hub.
        protocol: Name of decoding and scorer.
        limit: Rows of each task that are asked at most, at least 1; None for all.
        batch_size: Questions answered at once, at least 1; changes no score but for rounding.
    """

    tasks: list[str] | str = DEFAULT_SUITE
    data: dict[str, str] | str | None = None
    protocol: str = "papo-greedy"
    limit: int | None = None
    batch_size: int = 64

    @property
    def benchmarks(self) -> list[Benchmark]:
        """Each once, those of a suite without data too.

        Raises:
            EvaluationError: An unknown name, for which `data` has no source.
        """
        return suite_benchmarks(self.names, self.own)

    @property
    def asked(self) -> list[Benchmark]:
        """Those with data."""
        return asked_benchmarks(self.names, suite_sources(self.data), self.own)

    @property
    def names(self) -> list[str]:
        return [self.tasks] if isinstance(self.tasks, str) else self.tasks

    @property
    def own(self) -> Collection[str]:
        """Names for which the study gives rows."""
        return self.data if isinstance(self.data, Mapping) else ()

    @property
    def values(self) -> dict[str, Any]:
        """All fields, as YAML can hold them."""
        return dataclasses.asdict(self)

    @property
    def compared(self) -> dict[str, Any]:
        """The fields that must be equal for scores to be comparable."""
        return {name: value for name, value in self.values.items() if name != "batch_size"}


KEYS = tuple(field.name for field in dataclasses.fields(StudySuite))


def read_suite(given: Any, where: str) -> StudySuite:
    """Check what a study file has under `suite`; no file is opened.

    Raises:
        EvaluationError: Not a mapping, or an invalid key or value; names it after `where`.
    """
    if not isinstance(given, Mapping):
        raise EvaluationError(f"{where} is {given!r}, expected 'name: value' lines with {', '.join(KEYS)}")
    for key in given:
        if key not in KEYS:
            raise EvaluationError(
                f"{where}: unknown key {key!r}{did_you_mean(str(key), KEYS)}; it takes {', '.join(KEYS)}"
            )
    suite = StudySuite(**given)
    check_forms(suite, where)
    try:
        names = [benchmark.name for benchmark in suite.benchmarks]
    except EvaluationError as error:
        raise EvaluationError(f"{where}: tasks: {error}") from error
    try:
        protocol_named(suite.protocol)
    except EvaluationError as error:
        raise EvaluationError(f"{where}: protocol: {error}") from error
    for name in suite.data if isinstance(suite.data, Mapping) else ():
        if name not in names:
            raise EvaluationError(
                f"{where}: data: {name!r} is not one of the tasks{did_you_mean(name, names)}; name it under tasks, or "
                "remove it"
            )
    return suite


def check_forms(suite: StudySuite, where: str) -> None:
    """Raises:
    EvaluationError: A value of another type than expected, or a number below 1.
    """
    tasks = [suite.tasks] if isinstance(suite.tasks, str) else suite.tasks
    if not isinstance(tasks, list) or not tasks or not all(isinstance(name, str) for name in tasks):
        raise EvaluationError(f"{where}: tasks is {suite.tasks!r}, expected the name of a suite, or a list of tasks")
    try:
        suite_sources(suite.data)
    except ValueError as error:
        raise EvaluationError(f"{where}: data is {suite.data!r}, {error}") from error
    if not isinstance(suite.data, Mapping | str | None):
        raise EvaluationError(f"{where}: data is {suite.data!r}, expected a folder, or a source for each task")
    if not isinstance(suite.protocol, str):
        raise EvaluationError(f"{where}: protocol is {suite.protocol!r}, expected a name")
    for name, number in (("limit", suite.limit), ("batch_size", suite.batch_size)):
        if (number is not None or name == "batch_size") and (type(number) is not int or number < 1):
            raise EvaluationError(f"{where}: {name} is {number!r}, expected a whole number from 1")


def suite_faults(suite: StudySuite) -> dict[str, str]:
    """Faults that would stop the evaluation of every run, each with its key.

    All rows are read, and images are decoded once.
    """
    faults: dict[str, str] = {}
    for key, check in (("tasks", check_runner), ("protocol", lambda: check_scorer(suite_scorer(suite)))):
        try:
            check()
        except (EvaluationError, ImportError) as error:
            faults[str(error)] = key
    try:
        if isinstance(suite.data, str) and not is_folder(expanded(suite.data)):
            hint = "name a folder with the data of the tasks, or a source for each, as in {mathvista: FILE}"
            return faults | {f"there is no folder {suite.data!r}; {hint}": "data"}
    except DataError as error:
        return faults | {str(error): "data"}
    for benchmark in suite.asked:
        try:
            load_benchmark(benchmark, source_of(benchmark, suite_sources(suite.data)), limit=suite.limit)
        except DataError as error:
            faults[str(error)] = "data"
    return faults


def suite_scorer(suite: StudySuite) -> str:
    return protocol_named(suite.protocol).scorer


def fields_not_taken(recipe: Recipe) -> list[str]:
    """The fields of a recipe that would be ignored where its start and its trained model are evaluated."""
    values = {**vars(recipe.config), **vars(recipe.model)}
    return [name for name, neutral in NOT_TAKEN.items() if values[name] not in neutral]


def suite_files(suite: StudySuite) -> dict[str, Path]:
    """By task, the file or folder that its rows are in, of those that are on this machine."""
    found: dict[str, Path] = {}
    for benchmark in suite.benchmarks:
        try:
            source = located(benchmark, source_of(benchmark, suite_sources(suite.data)))
            path = expanded(name_and_split(source)[0])
        except DataError:  # `suite_faults` says so where it stops a run
            continue
        if path.exists():
            found[benchmark.name] = path
    return found


def evaluate_run(one: StudyRun, recipe: Recipe, *, start: bool) -> None:
    """Evaluate the trained model of a run, or its start, into its evaluation folder, which is resumed.

    Both are asked in the way of the recipe: template, response length, pixel limits and dtype.

    Args:
        one: Has the suite among its files.
        recipe: Of the run.
        start: Evaluate the start model.

    Raises:
        EvaluationError, ImportError, DataError, RecipeError, RunFolderError: As in `evaluate_suite`.
    """
    check_runner()
    from vgpo.suite.run import SuiteRequest, evaluate_suite

    suite = read_suite(read_mapping(one.suite_path), str(one.suite_path))
    run = recipe.run
    request = SuiteRequest(
        # Absolute: the command may be run again from another folder.
        checkpoint=str(recipe.model.model_name_or_path if start else one.final_path.absolute()),
        benchmarks=suite.asked,
        data=suite_sources(suite.data),
        protocol=protocol_named(suite.protocol),
        out=one.evaluation.path,
        template=run.template,
        max_new_tokens=recipe.config.max_completion_length,
        min_pixels=run.min_pixels,
        max_pixels=run.max_pixels,
        dtype=recipe.model.dtype or "auto",
        batch_size=suite.batch_size,
        limit=suite.limit,
    )
    evaluate_suite(request, Console())
