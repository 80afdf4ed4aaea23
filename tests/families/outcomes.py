"""The outcome of a family: two steps of training and the parity check, or the reason why it cannot be trained.

`docs/families.md` has a row for each; `python -m tests.families.table` writes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.families.build import CONFIG_ONLY
from tests.families.checks import GROUP, Family
from vgpo.policy.measurement import SEPARATE_ROWS
from vgpo.recipe.errors import RecipeError
from vgpo.trl import VGPOTrainer

LIMIT = 3e-5  # nats, in float32
# Linear attention adds up in chunks of tokens, which begin elsewhere in a padded row.
ROUNDING = {"qwen3_5": 1e-4, "qwen3_5_moe": 1e-4}
# Families whose processor takes no prompt without an image.
IMAGES_REQUIRED = ("paligemma", "paligemma2", "pp_chart2table")
# Families with parameters for images that a blank one does not run, by a word of their names: experts of the decoder,
# and queries for the tiles of large images.
NOT_RUN_BY_BLANK = {"ernie4_5_vl_moe": "vision_moe", "deepseek_ocr2": "query_768"}
# What is known not to work: how the error begins or what it holds, and the reason for the table.
CROSS_ATTENTION = ("its decoder reads images by cross attention", "Refused: its images are not tokens of the decoder.")
CODES = ("discrete codes", "Refused: its images become discrete codes, through which no gradient reaches the tower.")
RED: dict[str, tuple[str, str]] = {
    "mllama": CROSS_ATTENTION,
    "idefics": CROSS_ATTENTION,
    "emu3": CODES,
    "chameleon": CODES,
    "blip_2": ("Q-Former", "Refused: its Q-Former has no placeholder in a chat prompt."),
    "florence2": ("encoder-decoder", "Refused: it is an encoder-decoder model."),
    "llama4": (
        "ParityError.*cannot be measured",
        "Stopped by the parity check: the forward pass of transformers 5.24 fails for text and for images alike.",
    ),
    "granite4_vision": (
        "ParityError.*no decoder input changes",
        "Stopped by the parity check: its layers add image features themselves, which no input shows.",
    ),
    "got_ocr2": ("pages of one document", "Refused: its processor takes images as the pages of one document only."),
}


@dataclass(frozen=True)
class Outcome:
    """A row of the table.

    Args:
        family: its name in `ALL_FAMILIES`.
        model_type: of its config.
        numbers: of images in the rows that it was trained on.
        why_not: the reason why it cannot be trained, or empty.
        head: "fused", or "own" where log-probabilities come from the model's own logits.
        why_separate: the reason why prompts are not shared, or empty.
        blank: whether a blank image keeps several processes together.
    """

    family: str
    model_type: str
    numbers: tuple[int, ...] = ()
    why_not: str = ""
    head: str = ""
    why_separate: str = ""
    blank: bool = False


def outcome(family: Family) -> Outcome:
    """Train for two steps after the parity check.

    Raises:
        AssertionError: it does not do what is known of it.
    """
    model_type = family.model_type
    if family.name in CONFIG_ONLY:
        return Outcome(family.name, model_type, why_not=refusal(family))
    if family.name in RED:
        pattern, reason = RED[family.name]
        try:
            trained(family, (0, 1, 2))
        except Exception as error:  # noqa: BLE001  # of whatever kind: the pattern says which
            found = f"{type(error).__name__}: {error}"
            assert re.search(pattern, found, re.DOTALL), f"{family.name}: expected {pattern!r}, found {found[:600]}"
            return Outcome(family.name, model_type, why_not=reason)
        raise AssertionError(f"{family.name} trains: take it out of RED")
    numbers = (1, 2) if family.name in IMAGES_REQUIRED else (0, 1, 2)
    trainer = trained(family, numbers)
    parity = trainer.parity
    assert parity is not None
    if parity.shares_prompts:
        assert all(gap.passes for gap in parity.gaps if gap.remedy == SEPARATE_ROWS)
    blank = [gap for gap in parity.gaps if gap.name == "text rows, blank image"]
    # Shared prompts that differ are not used: the reason is in the table.
    required = [gap for gap in parity.gaps if gap not in blank and gap.remedy != SEPARATE_ROWS]
    for gap in required:
        assert gap.passes, f"{family.name}: {gap}"
        limit = ROUNDING.get(family.name, LIMIT)
        assert not gap.largest >= limit or "gradients" in gap.name, f"{family.name}: {gap}"
    return Outcome(
        family.name,
        model_type,
        numbers,
        head="own" if parity.own_head else "fused",
        why_separate="" if parity.shares_prompts else trainer._sharing.reason,
        blank=bool(blank) and all(gap.passes for gap in blank) and family.name not in NOT_RUN_BY_BLANK,
    )


def refusal(family: Family) -> str:
    """Why a family is refused before its weights are looked for, out of the message."""
    with pytest.raises(RecipeError) as refused:
        family.load()
    found = re.search(r"cannot be trained: (.*?)\. VGPO|has a part (of the package .*)", str(refused.value))
    assert found, refused.value
    return f"Refused: {found[1]}." if found[1] else f"Refused: it has a part {found[2]}"


def trained(family: Family, numbers: tuple[int, ...]) -> VGPOTrainer:
    """A trainer after two steps on rows with these numbers of images."""
    trainer = family.trainer(
        tempted=False, numbers=numbers, parity="auto", per_device_train_batch_size=GROUP * len(numbers)
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    return trainer
