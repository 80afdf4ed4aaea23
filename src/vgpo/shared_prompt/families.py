"""Model families for which sharing a prompt is proven to be correct."""

from collections.abc import Mapping
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import Cache

from vgpo.focus import decoder_of, layers_of
from vgpo.shared_prompt.layers import LINEAR_LAYERS
from vgpo.shared_prompt.passes import cache_argument

# Families (`model_type`) whose outputs and gradients the tests compare with those of separate rows.
PROVEN = (
    "gemma3",
    "idefics3",
    "internvl",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
)
# Kinds of decoder layers whose states a prompt can pass on to its responses (`vgpo.shared_prompt.layers`).
KNOWN_LAYERS = ("full_attention", "sliding_attention", *LINEAR_LAYERS)


def why_not_shared(model: nn.Module, *, measured: bool = False) -> str | None:
    """The reason why the rollouts of a group cannot share their prompt with this model, or None if they can.

    Args:
        model: that scores rollouts, wrapped or not.
        measured: whether a measurement on this model follows (`vgpo.policy.parity`). Without one, only families that
            the tests have proven share prompts.
    """
    config = extract_model_from_parallel(model).config
    family = config.model_type
    if obstacle := structural_obstacle(config.get_text_config(decoder=True).to_dict()):
        return f"model_type {family!r}: {obstacle}"
    if family not in PROVEN and not measured:
        return (
            f"model_type {family!r} is not among those it is proven for ({', '.join(PROVEN)}), and "
            "parity, which would measure it, is off"
        )
    if cache_argument(model) is None:
        return f"the forward of {type(extract_model_from_parallel(model)).__name__} takes no cache"
    try:
        layers_of(decoder_of(model))
    except ValueError as error:
        return str(error).rstrip(".")
    return None


def structural_obstacle(text: Mapping[str, Any]) -> str | None:
    """The setting in a text decoder's config that makes a response depend on more than its prompt and itself, or None.

    Args:
        text: the config's fields.
    """
    kinds = {str(kind) for kind in text.get("layer_types") or []}
    if unknown := sorted(kinds - set(KNOWN_LAYERS)):
        return f"its decoder has layers of the kinds {', '.join(unknown)}, expected {', '.join(KNOWN_LAYERS)}"
    if not kinds.isdisjoint(LINEAR_LAYERS) and not hasattr(Cache, "get_conv_state"):
        return "this version of transformers writes into the states of linear attention; update it to share prompts"
    if text.get("attention_dropout"):
        return f"attention_dropout={text['attention_dropout']} in its config, expected 0"
    return None
