"""The parity check of `vgpo doctor`: what `vgpo train` measures before its first step, without a trainer."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from vgpo.focus import named_visual_token_ids
from vgpo.policy.blank_media import blank_prompt
from vgpo.policy.generation import sampled_decoding
from vgpo.policy.head import use_own_head
from vgpo.policy.parity import FAULTS, MAX_TOKENS, Host, Parity, measure, settle, timed, unlike
from vgpo.policy.prompts import EncodedPrompt, encode
from vgpo.recipe.setup import Setup
from vgpo.shared_prompt import PromptSharing

ROWS = 16  # of the data set, in which prompts with unlike images are looked for
TEXT_ROW = {"prompt": [{"role": "user", "content": [{"type": "text", "text": "How many are there?"}]}], "images": []}


def measure_parity(setup: Setup) -> Parity:
    """Measure on the recipe's model and data, on a GPU if there is one; the model is left as it was.

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
    encoder = partial(encode_row, setup, device=device)
    rows = [encoder(setup.prompts[index]) for index in range(min(ROWS, len(setup.prompts)))]
    with_images, text = [row for row in rows if row.media], [row for row in rows if not row.media]
    plain = text[0] if text else or_none(encoder, TEXT_ROW)
    blank = or_none(encoder, {"prompt": blank_prompt(), "images": []})
    prompts = unlike(iter(with_images or text))

    def host() -> Host:
        return host_of(setup, sharing, blank=blank.media if blank else None, needs_text=bool(text))

    try:
        return timed(
            lambda: settle(
                lambda: measure(host(), prompts, plain),
                strict=config.parity == "strict",
                use_own_head=lambda reason: use_own_head(model, config.temperature),
                separate_rows=sharing.stop,
            ),
            host,
        )
    finally:
        del model.forward
        model.to(place)


def host_of(setup: Setup, sharing: PromptSharing, *, blank: dict[str, Tensor] | None, needs_text: bool) -> Host:
    """The recipe's model as a trainer on one device runs it."""
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
        blank=blank,
        needs_text=needs_text,
        backward=torch.Tensor.backward,
        token_of=tokenizer.convert_ids_to_tokens,
    )


@contextmanager
def generating(setup: Setup) -> Iterator[torch.nn.Module]:
    """The model that generates is the one that scores."""
    yield setup.model


def encode_row(setup: Setup, row: dict[str, Any], *, device: torch.device) -> EncodedPrompt:
    return encode(setup.processor, row, setup.recipe.config.chat_template_kwargs or {}, device)


def or_none(encoder: partial[EncodedPrompt], row: dict[str, Any]) -> EncodedPrompt | None:
    """A prompt that is not of the data, if the processor takes it; some demand an image."""
    try:
        return encoder(row)
    except FAULTS:
        return None
