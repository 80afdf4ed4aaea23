"""Where sharing a prompt is known to be right."""

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
KNOWN_OBSTACLES = {
    "gemma3": "its image tokens see each other in both directions, and some layers see a sliding window only",
    "qwen3_5": "most of its layers carry a state from token to token, which responses would hand on to each other",
}
DEVICES = ("cpu", "cuda")


def why_not_shared(model: nn.Module) -> str | None:
    """The reason why the rollouts of a group cannot share their prompt with this model, or None if they can."""
    config = extract_model_from_parallel(model).config
    text_config = config.get_text_config(decoder=True)
    layer_types = set(text_config.to_dict().get("layer_types") or ["full_attention"])
    family, implementation = config.model_type, text_config._attn_implementation
    if family in KNOWN_OBSTACLES:
        return f"model_type {family!r}: {KNOWN_OBSTACLES[family]}"
    if family not in PROVEN:
        return f"model_type {family!r} is not among those it is proven for ({', '.join(PROVEN)})"
    if layer_types - {"full_attention"}:
        return f"its decoder has layers of {sorted(layer_types - {'full_attention'})}, expected full_attention only"
    if implementation not in ALL_ATTENTION_FUNCTIONS:
        return (
            f"attn_implementation={implementation!r} is not in transformers' table of attention functions; 'sdpa' is, "
            "and computes the same"
        )
    if not attention_modules(decoder_of(model)):
        return "its decoder has no modules named 'self_attn'"
    if text_config.attention_dropout:
        return f"attention_dropout={text_config.attention_dropout} in its config, expected 0"
    devices = {parameter.device for parameter in model.parameters() if not parameter.is_meta}
    if len(devices) > 1 or any(device.type not in DEVICES for device in devices):
        return f"its parameters are on {sorted(map(str, devices))}, expected one device, {' or '.join(DEVICES)}"
    return None
