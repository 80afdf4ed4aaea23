"""Table of the benchmarks in the paper (arXiv 2604.09349, tables 1 and 2), and further ones.

Rows, licences and columns are those of the datasets' authors and of PAPO-Eval, whose subsets the paper evaluates on.
Unconfirmed facts are marked in `notes`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from vgpo.evaluation.errors import EvaluationError
from vgpo.text import did_you_mean

MATH, VISION, FURTHER = "math", "vision", "further"
UNCONFIRMED = "unconfirmed"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark: the source of its rows, which of them count, and how they are grouped.

    Attributes:
        name: As on the command line.
        title: As in the paper.
        group: `MATH`, `VISION`, or `FURTHER` for what the paper's averages do not contain.
        original: Its original dataset, as `vgpo.data.load_dataset` takes it; None where no data are public.
        papo_split: The PAPO-Eval split with its rows; None if there is none.
        num_rows: Rows in the paper's evaluation; None if unknown.
        papo_rows: Rows in PAPO-Eval's split, if different from `num_rows`.
        licence: Of the original data.
        category: Field of `meta` by which accuracy is broken down, `record.field` for a nested one; None for none.
        cluster: Field of `meta` that is equal for variants of one problem; None for independent rows.
        precision: Field of `meta` with the decimal places that the authors round numbers to; None for none. Rows in
        PAPO-Eval's form do not have these fields: their categories are unknown, rows are treated as independent, so
        that errors are too small if they are not, and numbers are not rounded.
        select: Rows of the original dataset that belong to the benchmark: field of `meta` -> allowed values.
        PAPO-Eval's split contains only these.
        part_of: Name of the benchmark whose original dataset contains it.
        read_as: Replaces the detected row format: detected format -> format to use.
        notes: What to know about its rows and scores.
    """

    name: str
    title: str
    group: str
    original: str | None
    papo_split: str | None = None
    num_rows: int | None = None
    papo_rows: int | None = None
    licence: str
    category: str | None = None
    cluster: str | None = None
    precision: str | None = None
    select: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    part_of: str | None = None
    read_as: Mapping[str, str] = field(default_factory=dict, hash=False)
    notes: str = ""

    def expected_rows(self, *, papo: bool) -> int | None:
        """Rows in a complete source, in PAPO-Eval's form or another; None if unknown."""
        return self.papo_rows or self.num_rows if papo else self.num_rows


_MULTIPLE_CHOICE = ("multi-choice",)
_TEXT_VERSIONS = ("Text Dominant", "Text Lite")
_VISION_VERSIONS = ("Vision Intensive", "Vision Dominant", "Vision Only")

_ALL = (
    Benchmark(
        name="mathvista",
        title="MathVista",
        group=MATH,
        original="AI4Math/MathVista@testmini",
        papo_split="AI4Math_MathVista",
        num_rows=1000,
        licence="CC BY-SA 4.0; not to be trained on",
        category="metadata.task",
        precision="precision",
        notes="540 rows have options and 460 a number; in the original set the answer to the former is an option's "
        "text, which is read as its letter. PAPO-Eval's form does not say to how many decimal places a number is "
        "rounded.",
    ),
    Benchmark(
        name="mathverse",
        title="MathVerse",
        group=MATH,
        original="AI4Math/MathVerse/testmini@testmini",
        papo_split="AI4Math_MathVerse",
        num_rows=2180,
        licence="MIT",
        category="problem_version",
        cluster="problem_index",
        select={"question_type": _MULTIPLE_CHOICE, "problem_version": (*_TEXT_VERSIONS, *_VISION_VERSIONS)},
        notes="The 436 multiple-choice problems in five versions each; the free-form ones are not in PAPO-Eval.",
    ),
    Benchmark(
        name="wemath",
        title="We-Math",
        group=MATH,
        original="We-Math/We-Math@testmini",
        papo_split="We_Math",
        num_rows=1740,
        licence="CC BY-NC 4.0",
        category="key",
        cluster="ID",
        notes="Rows are the steps of 525 composite problems; `key` says which step of how many a row is.",
    ),
    Benchmark(
        name="mmk12",
        title="MMK12",
        group=MATH,
        original="FanqingM/MMK12@test",
        papo_split="PAPO_MMK12",
        num_rows=2000,
        licence=UNCONFIRMED,
        category="subject",
    ),
    Benchmark(
        name="geomath",
        title="GeoMath",
        group=MATH,
        original=None,
        licence=UNCONFIRMED,
        notes="The paper cites a set of questions on aerial images whose data are not public, and other sets have the "
        "same name; which one was scored is unconfirmed.",
    ),
    Benchmark(
        name="geometry3k",
        title="Geometry3K",
        group=MATH,
        original="hiyouga/geometry3k@test",
        papo_split="hiyouga_geometry3k",
        num_rows=601,
        licence="MIT",
        read_as={"geometry3k": "geometry3k_open"},
        notes="Asked without options, for a value. The authors' files have four options per problem; the text of the "
        "correct one is the answer here.",
    ),
    Benchmark(
        name="logicvista",
        title="LogicVista",
        group=VISION,
        original="lscpku/LogicVista@test",
        papo_split="lscpku_LogicVista",
        num_rows=448,
        papo_rows=447,
        licence="Apache-2.0; 287 of its images are said not to be licensed",
        category="skill",
        notes="Row v1_382 has neither question nor answer. PAPO-Eval's split lacks it; in the original set it is "
        "dropped, and counts as wrong.",
    ),
    Benchmark(
        name="counting",
        title="SuperClevr Counting",
        group=VISION,
        original="BUAADreamer/clevr_count_70k@test",
        papo_split="BUAADreamer_clevr_count_70k",
        num_rows=200,
        licence=UNCONFIRMED,
    ),
    Benchmark(
        name="mmmu_pro",
        title="MMMU-Pro",
        group=VISION,
        original="MMMU/MMMU_Pro/vision@test",
        papo_split="MMMU_MMMU_Pro",
        num_rows=1730,
        licence="Apache-2.0",
        category="subject",
        notes="The vision setting: question and options are in the image. The standard setting with 10 options is "
        "another benchmark of the same rows: --data 'mmmu_pro=MMMU/MMMU_Pro/standard (10 options)@test'.",
    ),
    Benchmark(
        name="mathverse_v",
        title="MathVerse-V",
        group=VISION,
        original="AI4Math/MathVerse/testmini@testmini",
        papo_split="AI4Math_MathVerse_vision_dependent",
        num_rows=1308,
        licence="MIT",
        category="problem_version",
        cluster="problem_index",
        select={"question_type": _MULTIPLE_CHOICE, "problem_version": _VISION_VERSIONS},
        part_of="mathverse",
        notes="Three of the five versions of MathVerse's 436 multiple-choice problems; that they are Vision "
        "Intensive, Vision Dominant and Vision Only is unconfirmed. Its rows are rows of MathVerse, too.",
    ),
    Benchmark(
        name="mathvision",
        title="MathVision",
        group=FURTHER,
        original="MathLLMs/MathVision@test",
        num_rows=3040,
        licence="MIT",
        category="subject",
        notes="335 rows mention several images that are merged into one, which comes first.",
    ),
    Benchmark(
        name="dynamath",
        title="DynaMath",
        group=FURTHER,
        original="DynaMath/DynaMath_Sample@sample_variant1",
        num_rows=501,
        licence="MIT by its README, without a licence file",
        category="subject",
        notes="The first of ten variants of each question; further ones by --data, as sample_variant2. The authors "
        "accept numbers within a tolerance, and no scorer here does.",
    ),
)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}

SUITES: dict[str, tuple[str, ...]] = {
    "vgpo": tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.group in (MATH, VISION)),
    "vgpo-math": tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.group == MATH),
    "vgpo-vision": tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.group == VISION),
}


def own_task(name: str) -> Benchmark:
    """A user-defined task that is not in the table."""
    return Benchmark(name=name, title=name, group=FURTHER, original=None, licence="")


def tasks_of(suite: str, names: Sequence[str] = (), own: Collection[str] = ()) -> list[Benchmark]:
    """The benchmarks of a suite, or those with the given names, each once; names need not be in a suite.

    Args:
        suite: A key of `SUITES`.
        names: Keys of `BENCHMARKS`, or of `own`.
        own: Names for which the user provides rows, with the characters of a file name.

    Raises:
        EvaluationError: An unknown suite or name.
    """
    if suite not in SUITES:
        raise EvaluationError(f"there is no suite {suite!r}{did_you_mean(suite, SUITES)}; the suites are {[*SUITES]}")
    for name in names:
        if name not in BENCHMARKS and name not in own:
            raise EvaluationError(
                f"there is no task {name!r}{did_you_mean(name, BENCHMARKS)}; the tasks are {[*BENCHMARKS]}, and any "
                "other name for which --data NAME=SOURCE gives rows"
            )
    return [BENCHMARKS.get(name) or own_task(name) for name in dict.fromkeys(names or SUITES[suite])]
