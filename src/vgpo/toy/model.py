"""The toy model: a real Qwen2.5-VL of about one million parameters, its tokenizer and its processor."""

from __future__ import annotations

import re

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from vgpo.toy.scans import CELL
from vgpo.toy.task import MAX_SIDE

SPECIAL_TOKENS = (
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen2.5-VL's turn format, without its default system message: fewer tokens to read.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Candidates for single tokens; anything else is encoded as bytes.
_WORD = r"</?think>| ?row \d:|\\boxed\{| ?\d{1,2}s?| ?[A-Za-z]+|[^\sA-Za-z\d]|\s"

_WORDS = "How many are in the picture What is the largest digit sum of row total user assistant system"
# Words of questions that the toy weights do not know: at the end, so that the other ids are unchanged.
_MORE_WORDS = "digits rows to much same as it was that all Now"


def _vocabulary() -> list[str]:
    numbers = [str(number) for number in range(9 * MAX_SIDE + 1)]
    headers = [f"row {row}:" for row in range(1, MAX_SIDE + 1)]
    words = re.findall(r"\w+", _WORDS)
    spaced = [*numbers, *headers, *words, *(f"{digit}s" for digit in range(10))]
    return ["<think>", "</think>", "\\boxed{", *numbers, *headers, *words, *(f" {word}" for word in spaced)]


def build_tokenizer(*, more_words: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the task's words that spells unknown text in bytes: any text round-trips.

    Args:
        more_words: with those of the settings beside ``image``, which the toy weights do not know.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    more = [form for word in _MORE_WORDS.split() for form in (word, f" {word}")] if more_words else []
    words = [byte_level.pre_tokenize_str(word)[0][0] for word in [*_vocabulary(), *more]]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*SPECIAL_TOKENS, *letters, *words]))}
    # With merges ignored, a word is looked up as one token; without merges, other words become bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(_WORD), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_processor(*, more_words: bool = False) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor with the small tokenizer; images keep their size in multiples of 28 pixels."""
    size = {"shortest_edge": CELL * CELL, "longest_edge": CELL * CELL * 256}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=build_tokenizer(more_words=more_words),
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained model, float32; the same seed gives the same weights."""
    token_id = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            # The width axis turns with the slowest third of the frequencies. Over a grid of three columns
            # the usual base of 1e6 would not turn them: the model could not distinguish columns.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id("<|pad|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": CELL // 2,
            "spatial_merge_size": 2,
            "window_size": 4 * CELL,
            "fullatt_block_indexes": [1],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=token_id("<|im_end|>"), pad_token_id=token_id("<|pad|>"), do_sample=False
    )
    return model
