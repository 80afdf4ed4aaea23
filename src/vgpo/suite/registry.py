"""What the package registers with inspect-ai: the provider `vgpo/CHECKPOINT` and a task for each benchmark.

inspect-ai imports this module in every of its commands, so it loads nothing heavy before a task or model is made.
"""

from collections.abc import Callable

from inspect_ai import Task, task
from inspect_ai.model import ModelAPI, modelapi

from vgpo.evaluation.benchmarks import BENCHMARKS, Benchmark

PAPO_GREEDY = "papo-greedy"


@modelapi(name="vgpo")
def checkpoint_api() -> type[ModelAPI]:
    """A checkpoint folder, a hub name or `toy`."""
    from vgpo.suite.provider import CheckpointAPI

    return CheckpointAPI


def registered(benchmark: Benchmark) -> Callable[..., Task]:
    """The function that inspect-ai calls for a benchmark."""

    @task(name=benchmark.name)
    def make(
        data: str | None = None,
        protocol: str = PAPO_GREEDY,
        template: str | None = None,
        limit: int | None = None,
        faulty_rows: str = "drop",
    ) -> Task:
        """A benchmark as a task.

        Args:
            data: Its rows: a file, a folder, or a hub name with `@split`; None for its own.
            protocol: As in `vgpo.evaluation.protocols`.
            template: Prompt template; None for that of the checkpoint's run, else `think_boxed`.
            limit: At most the first `limit` rows.
            faulty_rows: "drop" counts and names rows that cannot be read; "error" ends in an error.
        """
        from vgpo.data import Reading
        from vgpo.evaluation.benchmark_rows import load_benchmark
        from vgpo.evaluation.protocols import protocol_named
        from vgpo.suite.tasks import Asking, benchmark_task

        rows = load_benchmark(benchmark, data, reading=Reading(faulty_rows=faulty_rows), limit=limit)
        return benchmark_task(Asking(rows=rows, protocol=protocol_named(protocol), template=template))

    return make


TASKS = {name: registered(benchmark) for name, benchmark in BENCHMARKS.items()}
