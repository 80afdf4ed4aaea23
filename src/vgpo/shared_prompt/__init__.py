"""A prompt is computed once for all its rollouts."""

from vgpo.shared_prompt.attention import enable_layouts
from vgpo.shared_prompt.families import PROVEN, why_not_shared
from vgpo.shared_prompt.generation import PrefillError, generator_of, prefill_once, why_not_prefill_once
from vgpo.shared_prompt.packing import Packing, pack_prompts, packed_rows
from vgpo.shared_prompt.sharing import PromptSharing

__all__ = [
    "PROVEN",
    "Packing",
    "PrefillError",
    "PromptSharing",
    "enable_layouts",
    "generator_of",
    "pack_prompts",
    "packed_rows",
    "prefill_once",
    "why_not_prefill_once",
    "why_not_shared",
]
