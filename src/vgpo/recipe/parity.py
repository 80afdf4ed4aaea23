"""The parity check of `vgpo doctor`: what `vgpo train` measures before its first step, without a trainer."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from trl.trainer.utils import add_fused_lm_head

from vgpo.focus import named_visual_token_ids
from vgpo.policy.generation import sampled_decoding
from vgpo.policy.head import use_own_head
from vgpo.policy.measurement import MAX_TOKENS, Host
from vgpo.policy.parity import Parity, settle
from vgpo.policy.probes import choose_probes
from vgpo.policy.prompts import EncodedPrompt, encode
from vgpo.recipe.setup import Setup
from vgpo.shared_prompt import PromptSharing


def measure_parity(setup: Setup) -> Parity:
    """Measure on the recipe's model and data, on a GPU if there is one; the model is left unchanged.

    Raises:
        vgpo.policy.parity.ParityError: a difference that no other way of scoring removes.
        ValueError: share_prompt is 'on', and shared prompts differ from separate rows.
    """
    config, model = setup.recipe.config, setup.model
    place, device = model.device, torch.device("cuda" if torch.cuda.is_available() and not config.use_cpu else "cpu")
    model.to(device)
    add_fused_lm_head(
        model, temperature=config.temperature, cast_lm_head_to_fp32=config.cast_lm_head_to_fp32,
        outputs=("log_probs", "entropy"),
    )  # fmt: skip
    sharing = PromptSharing(config.share_prompt, [model], measured=True)
    try:
        return settle(
            partial(host_of, setup, sharing),
            choose_probes(setup.prompts, partial(encoded, setup, device)),
            strict=config.parity == "strict",
            use_own_head=lambda reason: use_own_head(model, config.temperature),
            separate_rows=sharing.stop,
        )
    finally:
        del model.forward
        model.to(place)


def host_of(setup: Setup, sharing: PromptSharing) -> Host:
    """The recipe's model as run by a trainer on one device."""
    config, model, tokenizer = setup.recipe.config, setup.model, setup.processor.tokenizer
    length = min(MAX_TOKENS, config.max_completion_length)
    dtype = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else None
    return Host(
        model=model,
        visual_token_ids=named_visual_token_ids(model.config),
        decoding=sampled_decoding(model, setup.processor, length, config.temperature),
        temperature=config.temperature,
        special_token_ids=sorted(tokenizer.added_tokens_decoder),
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        autocast=partial(torch.autocast, model.device.type, dtype) if dtype else nullcontext,
        generating=partial(generating, setup),
        share=sharing.scoring,
        backward=torch.Tensor.backward,
        token_of=tokenizer.convert_ids_to_tokens,
    )


@contextmanager
def generating(setup: Setup) -> Iterator[torch.nn.Module]:
    """The model that generates is the one that scores."""
    yield setup.model


def encoded(setup: Setup, device: torch.device, prompt: Any, images: list[Any]) -> EncodedPrompt:
    """A prompt as training encodes it."""
    row = {"prompt": prompt, "images": images}
    return encode(setup.processor, row, setup.recipe.config.chat_template_kwargs or {}, device)
