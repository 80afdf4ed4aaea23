"""What the small checkpoints of the families are made of: a byte tokenizer, chat templates, and small sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

Checkpoint = tuple[PreTrainedConfig, ProcessorMixin]

# Three decoder layers of four heads over two key-value heads, each head 16 wide.
DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
ROPE = {"rope_type": "default", "rope_theta": 1000.0}
# Time, height and width share the eight frequencies of a head.
MROPE = {**ROPE, "mrope_section": [2, 3, 3]}
ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def chat_template(turn: str, image: str, end: str, reply: str, start: str = "") -> str:
    """Messages one after another, their parts in order; `turn` and `reply` open a turn, `image` marks an image."""
    return (
        start + "{% for message in messages %}" + turn + "{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}" + end + "{% endfor %}{% if add_generation_prompt %}" + reply + "{% endif %}"
    )


def chatml(image: str) -> str:
    """The turn format of the Qwen decoders."""
    turn = "<|im_start|>{{ message['role'] }}\n"
    return chat_template(turn, image, "<|im_end|>\n", "<|im_start|>assistant\n")


def byte_tokenizer(
    template: str, eos: str, pad: str, others: Sequence[str] = (), bos: str | None = None, **named: str
) -> PreTrainedTokenizerFast:
    """One token for each byte and one for each special token; `named` become attributes, as `image_token`."""
    special = [token for token in (pad, eos, bos, *others, *named.values()) if token is not None]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*special, *letters]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        bos_token=bos,
        extra_special_tokens=list(others),
        model_specific_special_tokens=named,
        padding_side="left",
        model_max_length=DECODER["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )


def decoder(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> dict[str, Any]:
    """The text configuration of every family, with what a family has of its own."""
    special = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    return {**DECODER, "rope_parameters": dict(ROPE), **special, **changes}


def qwen_vl_tokenizer() -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    """The tokenizer of the three Qwen-VL families and the ids that their configurations name."""
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    template = chatml("<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer = byte_tokenizer(template, "<|im_end|>", "<|endoftext|>", ("<|im_start|>", *names))
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return tokenizer, dict(zip(keys, tokenizer.convert_tokens_to_ids(list(names)), strict=True))


def pixels(cell: int) -> dict[str, int]:
    """Images keep their size in whole cells, from one to 64."""
    return {"shortest_edge": cell * cell, "longest_edge": 64 * cell * cell}
