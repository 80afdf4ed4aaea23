"""Where sharing a prompt is known to be right."""

from collections.abc import Mapping
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vgpo.focus import decoder_of
from vgpo.shared_prompt.attention import attention_modules

# Families (`model_type`) whose outputs and gradients the tests compare with those of separate rows.
PROVEN = (
    "idefics3",
    "internvl",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
)
OTHER_LAYERS = {
    "chunked_attention": "attend within chunks of the row",
    "conv": "carry a state from token to token, which responses would hand on to each other",
    "linear_attention": "carry a state from token to token, which responses would hand on to each other",
    "sliding_attention": "see a sliding window only",
}
DEVICES = ("cpu", "cuda")


def why_not_shared(model: nn.Module, *, measured: bool = False) -> str | None:
    """The reason why the rollouts of a group cannot share their prompt with this model, or None if they can.

    Args:
        model: that scores rollouts, wrapped or not.
        measured: whether a measurement on this model follows (`vgpo.policy.parity`). Without one, only families that
            the tests have proven share prompts.
    """
    config = extract_model_from_parallel(model).config
    text_config = config.get_text_config(decoder=True)
    family, implementation = config.model_type, text_config._attn_implementation
    if obstacle := structural_obstacle(text_config.to_dict()):
        return f"model_type {family!r}: {obstacle}"
    if family not in PROVEN and not measured:
        return (
            f"model_type {family!r} is not among those it is proven for ({', '.join(PROVEN)}), and "
            "parity, which would measure it, is off"
        )
    if implementation not in ALL_ATTENTION_FUNCTIONS:
        return (
            f"attn_implementation={implementation!r} is not in transformers' table of attention functions; 'sdpa' is, "
            "and computes the same"
        )
    if not attention_modules(decoder_of(model)):
        return "its decoder has no modules named 'self_attn'"
    devices = {parameter.device for parameter in model.parameters() if not parameter.is_meta}
    if len(devices) > 1 or any(device.type not in DEVICES for device in devices):
        return f"its parameters are on {sorted(map(str, devices))}, expected one device, {' or '.join(DEVICES)}"
    return None


def structural_obstacle(text: Mapping[str, Any]) -> str | None:
    """What in the config of a text decoder makes a response see something else than its prompt and itself, in order.

    Args:
        text: the config's fields.
    """
    layer_types = set(text.get("layer_types") or ["full_attention"])
    if others := sorted(layer_types - {"full_attention"}):
        kinds = (f"({kind}) {OTHER_LAYERS.get(kind, 'are of a kind not known here')}" for kind in others)
        return "some layers of its decoder " + " and some ".join(kinds)
    # Mistral's config has a window for all layers and no list of them. Qwen's names a window that it does not use.
    if not text.get("layer_types") and text.get("sliding_window") and text.get("use_sliding_window", True):
        return f"its decoder sees a sliding window of {text['sliding_window']} tokens only"
    if text.get("attn_logit_softcapping"):
        return f"its attention caps its scores (attn_logit_softcapping={text['attn_logit_softcapping']})"
    if text.get("attention_dropout"):
        return f"attention_dropout={text['attention_dropout']} in its config, expected 0"
    return None
