"""The benchmarks that the paper reports (arXiv 2604.09349, tables 1 and 2), and further ones: one table."""

from dataclasses import dataclass

MATH, VISION, FURTHER = "math", "vision", "further"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark: where its rows are, which of them count, and how they are grouped.

    Attributes:
        name: As on the command line.
        title: As in the paper.
        group: `MATH`, `VISION`, or `FURTHER` for what the paper's averages do not contain.
        original: Its original data set, as `vgpo.data.load_dataset` takes it; None where no data are public.
        papo_split: The split of PAPO-Eval with its rows; None if it has none.
        num_rows: Rows in the paper's evaluation; None if unknown.
        licence: Of the original data.
        category: Column of `meta` by whose values accuracy is broken down; None for none.
        cluster: Column of `meta` that is equal for rows which are variants of one problem; None for independent rows.
    """

    name: str
    title: str
    group: str
    original: str | None
    papo_split: str | None = None
    num_rows: int | None = None
    licence: str
    category: str | None = None
    cluster: str | None = None
