"""Packages that some recipe fields need and that vgpo does not install."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from vgpo.recipe.recipe import Recipe

BITSANDBYTES = re.compile("8bit|bnb|paged|lion|ademamix")  # optimizers that transformers takes from it


class Need(NamedTuple):
    """A field, whether its value needs a package, the package's module, and its pip requirement."""

    field: str
    asks: Callable[[Any], object]
    module: str
    requirement: str


# `trl[...]` has the versions that TRL works with.
NEEDS = (
    Need("use_vllm", bool, "vllm", "trl[vllm]"),
    Need("optim", BITSANDBYTES.search, "bitsandbytes", "trl[quantization]"),
    Need("load_in_4bit", bool, "bitsandbytes", "trl[quantization]"),
    Need("load_in_8bit", bool, "bitsandbytes", "trl[quantization]"),
    Need("use_liger_kernel", bool, "liger_kernel", "trl[liger]"),
    Need("attn_implementation", lambda name: name == "flash_attention_2", "flash_attn", "flash-attn"),
    Need("eval_suite_protocol", lambda name: name == "lenient", "math_verify", "vgpo[math-verify]"),
    Need("rewards", lambda names: "accuracy_math_verify" in names, "math_verify", "vgpo[math-verify]"),
)


def missing_packages(recipe: Recipe) -> list[Need]:
    """The missing packages of a recipe."""
    values = {**vars(recipe.run), **vars(recipe.config), **vars(recipe.model)}
    return [
        need
        for need in NEEDS
        if values[need.field] is not None and need.asks(values[need.field]) and find_spec(need.module) is None
    ]
