"""Each row of the first table in docs/families.md is the outcome of its family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.families import table
from tests.families.build import CONFIG_ONLY, FAMILIES, TRIED, build_checkpoint
from tests.families.checks import Family
from tests.families.outcomes import RED, outcome
from vgpo.recipe.tested import TESTED

# Families that differ in what the parity check does: another head, no shared prompts by structure or by measurement,
# experts, audio, and a refusal. The others are tried by `make test-all`.
SAMPLE = (
    "granite_vision", "llava_next_mistral", "paligemma", "internvl_moe", "glm4v_moe", "qwen2_5_omni_thinker", "mllama",
    "llava_next",
)  # fmt: skip
# Packages that transformers imports for a family without depending on them.
NEEDS = {"inkling_mm_model": "scipy"}


def committed() -> list[str]:
    return table.committed_lines(table.PAGE.read_text(encoding="utf-8"), table.OUTCOMES)


def case(name: str) -> Any:
    lane = [] if name in CONFIG_ONLY else [pytest.mark.train if name in SAMPLE else pytest.mark.slow]
    return pytest.param(name, marks=lane)


@pytest.mark.parametrize("name", [case(name) for name in TRIED])
def test_the_committed_row_is_what_becomes_of_a_family(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    build_checkpoint(name, tmp_path / name)
    assert table.outcome_line(outcome(Family(name, tmp_path, tmp_path / "out"))) in committed(), "make families"


def test_the_table_has_a_row_for_every_family() -> None:
    rows = [row.split("`") for row in committed()[2:]]
    assert {row[1] for row in rows} >= set(TRIED)  # an older transformers has fewer
    assert len(rows) >= 95
    assert sum("Refused" not in row[-1] and "Stopped" not in row[-1] for row in rows) >= 70
    if Version(transformers.__version__).release[:2] == TESTED["transformers"].newest.release[:2]:
        assert {row[3] for row in rows} == set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert set(FAMILIES) <= set(TRIED) - set(RED)
