"""Random Qwen2.5-VL models and prompts of exact size, for benchmarks that need no checkpoint.

The toy model's processor and tokenizer serve all of them.
"""

import copy
import statistics
from dataclasses import dataclass, replace
from typing import Any

import datasets
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2_5_VLConfig,
)

from vgpo import toy
from vgpo.data import to_prompts

EMBEDDED = "embedded"  # the case of the quickstart's model and task, which no bench describes
CELL = 28  # pixels of a visual token's side
WORD = "the"  # one token of the toy model's tokenizer, with a space before it or without
TEMPLATE_TOKENS = 10  # what the chat template writes around image and text


@dataclass(frozen=True)
class Case:
    """A prompt of `prompt` tokens, `side` x `side` of them visual, and rollouts of `response` tokens."""

    prompt: int
    side: int
    response: int


@dataclass(frozen=True)
class Bench:
    """What is measured: the sizes of a random Qwen2.5-VL, its precision, how it is trained, and the cases.

    Args:
        text: fields of the decoder's configuration.
        vision: fields of the vision tower's configuration.
        dtype: precision of the weights; bfloat16 trains under autocast.
        cases: by name.
        default_cases: names of the cases that are measured if none is named.
        default_groups: rollouts of a prompt, likewise.
        tied: whether the head's weights are the embeddings.
        checkpointing: whether activations are computed again in the backward pass.
        generates: whether rollouts are sampled from the model, or drawn at random.
        optim: the optimizer; "sgd" has no state, so that several trainers of a large model fit on one device.
        attention: the model's attention implementation; that of transformers by default.
        goals: the largest ratios to TRL's trainer that are aimed at, by name.
    """

    text: dict[str, int]
    vision: dict[str, Any]
    dtype: torch.dtype
    cases: dict[str, Case]
    default_cases: tuple[str, ...]
    default_groups: tuple[int, ...] = (4, 8, 16)
    tied: bool = True
    checkpointing: bool = False
    generates: bool = True
    optim: str = "adamw_torch_fused"
    attention: str | None = None
    goals: tuple[tuple[str, float], ...] = ()


# Prompt to response is 4:1, 1:1 and 1:4 tokens: on this and the group's size alone the floor depends. Shorter prompts,
# of which the image is still the greater part, keep steps of the last two cases as short as those of the first.
BENCHES = {
    # 17 million parameters.
    "cpu": Bench(
        text={"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6,
              "num_key_value_heads": 2, "vocab_size": 512},
        vision={"depth": 4, "hidden_size": 256, "intermediate_size": 512, "num_heads": 4,
                "fullatt_block_indexes": [3]},
        dtype=torch.float32,
        cases={"image_heavy": Case(300, 16, 75), "balanced": Case(100, 8, 100), "text_heavy": Case(48, 5, 192)},
        default_cases=("image_heavy", "balanced", "text_heavy", EMBEDDED),
    ),
    # 0.6 billion parameters, a quarter of them the embeddings of Qwen2.5's whole vocabulary.
    "cuda": Bench(
        text={"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16,
              "num_key_value_heads": 4, "vocab_size": 151_936},
        vision={"depth": 16, "hidden_size": 768, "intermediate_size": 2048, "num_heads": 12,
                "fullatt_block_indexes": [3, 7, 11, 15]},
        dtype=torch.bfloat16,
        cases={"image_heavy": Case(1072, 32, 256), "balanced": Case(384, 18, 384), "text_heavy": Case(128, 10, 512)},
        default_cases=("image_heavy",),
    ),
}  # fmt: skip

# The vision tower that both sizes have.
VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
# A run of the paper's kind generates with vLLM: the update is what the trainer itself does.
PAPER = {
    "vision": VISION,
    "dtype": torch.bfloat16,
    "cases": {"paper": Case(prompt=1200, side=32, response=500)},
    "default_cases": ("paper",),
    "default_groups": (8,),
    "checkpointing": True,
    "generates": False,
    "optim": "sgd",
    "goals": (("time_ratio", 0.42), ("memory_ratio", 0.5)),
}
MODELS = {
    # 3.75 billion parameters.
    "qwen2_5_vl_3b": Bench(
        text={"hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36, "num_attention_heads": 16,
              "num_key_value_heads": 2, "vocab_size": 151_936},
        **PAPER,
    ),
    # 8.29 billion parameters.
    "qwen2_5_vl_7b": Bench(
        text={"hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
              "num_key_value_heads": 4, "vocab_size": 152_064},
        tied=False,
        **PAPER,
    ),
}  # fmt: skip

TINY_TEXT = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 512,
}  # fmt: skip
TINY_VISION = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "fullatt_block_indexes": [0],
}  # fmt: skip


def tiny(bench: Bench) -> Bench:
    """The same in seconds on a CPU; the figures mean nothing."""
    return replace(
        bench,
        text=bench.text | TINY_TEXT,
        vision=bench.vision | TINY_VISION,
        cases=dict.fromkeys(bench.cases, Case(prompt=24, side=3, response=5)),
    )


def random_model(bench: Bench, tokenizer: PreTrainedTokenizerBase, seed: int, device: str = "cpu") -> PreTrainedModel:
    """A Qwen2.5-VL of the bench's sizes with the toy model's tokens; the same seed gives the same weights.

    It is built where it will be, and in its precision: billions of float32 weights need not fit into the memory.
    """
    token_id = tokenizer.convert_tokens_to_ids
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    eighth = bench.text["hidden_size"] // bench.text["num_attention_heads"] // 8
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [eighth, 3 * eighth // 2, 3 * eighth // 2]}
    config = Qwen2_5_VLConfig(
        text_config={**bench.text, **ends, "bos_token_id": None, "rope_parameters": rotary},
        vision_config={**bench.vision, "out_hidden_size": bench.text["hidden_size"], "patch_size": CELL // 2},
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=bench.tied,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=bench.dtype, attn_implementation=bench.attention)
    model.generation_config = GenerationConfig(**ends)
    return model


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own, with gradients of its own, on the memory of the same weights."""
    shared = {id(parameter): nn.Parameter(parameter.detach()) for parameter in model.parameters()}
    return copy.deepcopy(model, shared)


def processor_for(case: Case) -> ProcessorMixin:
    """The toy model's processor, which leaves images of the case as they are."""
    processor = AutoProcessor.from_pretrained(toy.checkpoint_path())
    processor.image_processor.size["longest_edge"] = (case.side * CELL) ** 2
    return processor


def random_prompts(case: Case, num_rows: int, seed: int) -> datasets.Dataset:
    """Rows whose prompts have the case's tokens: an image each, and one word again and again."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (num_rows, case.side, case.side, 3), generator=generator, dtype=torch.uint8).numpy()
    edge = case.side * CELL
    images = [Image.fromarray(cells).resize((edge, edge), Image.Resampling.NEAREST) for cells in colours]
    num_words = case.prompt - case.side**2 - TEMPLATE_TOKENS
    rows = {
        "images": [[image] for image in images],
        "problem": [" ".join([WORD] * num_words)] * num_rows,
        "answer": [""] * num_rows,
    }
    return to_prompts(datasets.Dataset.from_dict(rows))


def mean_lengths(prompts: datasets.Dataset, processor: ProcessorMixin) -> tuple[float, float]:
    """Tokens of a prompt and visual tokens among them, the mean of the first rows."""
    totals, visual = [], []
    for row in prompts.select(range(min(64, len(prompts)))):
        text = processor.apply_chat_template(row["prompt"], add_generation_prompt=True)
        ids = processor(text=[text], images=row["images"])["input_ids"][0]
        totals.append(len(ids))
        visual.append(ids.count(processor.image_token_id))
    return statistics.mean(totals), statistics.mean(visual)
