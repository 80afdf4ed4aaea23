"""Benchmarks of a recipe: names, data sources and grading protocol."""

import json
from collections.abc import Collection, Mapping, Sequence

from vgpo.evaluation.benchmark_rows import with_data
from vgpo.evaluation.benchmarks import SUITES, Benchmark, tasks_of
from vgpo.evaluation.protocols import Protocol, protocol_named


def suite_benchmarks(names: Sequence[str], own: Collection[str] = ()) -> list[Benchmark]:
    """The benchmarks with these names, and those of the suites among them, each once; `own` as in `tasks_of`.

    Raises:
        EvaluationError: An unknown name.
    """
    listed = [task for name in names for task in SUITES.get(name, (name,))]
    return tasks_of("vgpo", listed, own) if listed else []


def asked_benchmarks(
    names: Sequence[str], sources: Mapping[str, str] | str | tuple[()], own: Collection[str] = ()
) -> list[Benchmark]:
    """As `suite_benchmarks`, without suite members that have no data, as in `with_data`."""
    listed = suite_benchmarks(names, own)
    return [benchmark for benchmark in listed if benchmark.name in names or with_data([benchmark], sources)]


def suite_sources(data: Mapping[str, str] | str | None) -> Mapping[str, str] | str | tuple[()]:
    """The sources of the benchmarks, for `source_of`: a folder, `{task: source}` (also JSON), or None.

    Raises:
        ValueError: It is not a mapping of names.
    """
    sources = json.loads(data) if isinstance(data, str) and data.lstrip().startswith("{") else data
    if isinstance(sources, Mapping) and not all(isinstance(one, str) for pair in sources.items() for one in pair):
        raise ValueError("expected a folder, or a source for each task, as in {mathvista: FILE}")
    return () if sources is None else sources


def greedy_protocol(name: str) -> Protocol:
    """A protocol that asks each question once, greedily.

    Raises:
        ValueError: It samples, or the name is unknown.
    """
    protocol = protocol_named(name)
    if protocol.temperature > 0:
        raise ValueError(
            f"{name} samples {protocol.samples} answers to each question, expected a greedy protocol such as "
            "papo-greedy; `vgpo eval --suite` takes the others"
        )
    return protocol
