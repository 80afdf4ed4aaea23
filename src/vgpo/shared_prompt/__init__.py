"""A prompt is computed once for all its rollouts."""

from vgpo.shared_prompt.families import PROVEN, why_not_shared
from vgpo.shared_prompt.generation import (
    PrefillError,
    generate_replaced,
    generator_of,
    prefill_once,
    why_not_prefill_once,
)
from vgpo.shared_prompt.layers import States, prompt_cache, response_cache, states_of_prompts
from vgpo.shared_prompt.passes import is_sharded, prompt_positions, with_cache
from vgpo.shared_prompt.prefix import OpenPrompts, Prefix, last_uses, sharing_pattern
from vgpo.shared_prompt.sharing import PromptSharing

__all__ = [
    "PROVEN",
    "OpenPrompts",
    "PrefillError",
    "Prefix",
    "PromptSharing",
    "States",
    "generate_replaced",
    "generator_of",
    "is_sharded",
    "last_uses",
    "prefill_once",
    "prompt_cache",
    "prompt_positions",
    "response_cache",
    "sharing_pattern",
    "states_of_prompts",
    "why_not_prefill_once",
    "why_not_shared",
    "with_cache",
]
