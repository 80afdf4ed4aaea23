"""Estimate the memory of a device for an update from parameters and tokens, before the first step.

Included are weights, their copies for mixed precision or sharding, gradients, optimizer state, the decoder's
activations of a micro-batch for the backward pass, and those of the head. Not included are the vision tower's
activations, generation (its cache, or vLLM's share of the device), a reference model, and the overhead of the device
and its allocator.
"""

import dataclasses
import math
import os
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel
from transformers.training_args import OptimizerNames
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE

from vgpo.focus import decoder_of
from vgpo.trl import VGPOConfig

GIB, MIB = 2**30, 2**20
FLOAT32 = 4  # bytes
BFLOAT16 = 2
VOCABULARY_CHUNK_SIZE = 32768  # vocabulary entries per tile of TRL's fused head
# Bytes of optimizer state per float32 parameter; all others keep AdamW's two moments.
OPTIMISER_BYTES = {"sgd": 0, "adafactor": 0, "adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2}
ADAM_BYTES = 8
# Activations that a layer keeps for its backward pass, in values per token: of hidden size, the inputs and outputs of
# both norms and of attention, and both sums; of intermediate size, gate, its activation, up and their product.
HIDDEN_KEPT = 10
INTERMEDIATE_KEPT = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device at the peak of an update."""

    weights: int
    copies: int
    gradients: int
    optimizer: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    def table(self) -> Table:
        """A short table for the start of a run."""
        unit, size_of_unit = ("GiB", GIB) if self.total >= GIB else ("MiB", MIB)
        table = Table("memory per device, estimated", unit, box=None, title_justify="left", pad_edge=False)
        table.columns[1].justify = "right"
        for name, size in {**dataclasses.asdict(self), "total": self.total}.items():
            table.add_row(name, f"{size / size_of_unit:.{2 if size_of_unit == GIB else 0}f}")
        table.add_row("not counted: vision tower's activations, generation, reference model, allocator", "")
        return table


def in_words(num_bytes: int) -> str:
    """A number of bytes in GiB, or in MiB if it is less than one."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.0f} MiB"


def memory_estimate(
    model: PreTrainedModel, config: VGPOConfig, *, prompt_tokens: int, shares_prompts: bool, shards: int = 1
) -> MemoryEstimate:
    """The memory of one device for responses of maximum length.

    Args:
        model: with parts frozen and adapters added, not yet wrapped.
        config: of the trainer.
        prompt_tokens: length of a prompt, its images' tokens included.
        shares_prompts: whether an optimizer step computes a prompt once.
        shards: number of devices that weights, gradients and optimizer state are spread over, see `shards_of`.
    """
    computing = BFLOAT16 if config.bf16 or model.dtype == torch.bfloat16 else FLOAT32
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    raised = shards > 1 and config.bf16  # accelerate keeps trained weights in float32 then
    trained_bytes = sum(p.numel() * (FLOAT32 if raised else p.element_size()) for p in trained)
    frozen_bytes = sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad)
    # Gradients exist a second time in the buckets that replicas exchange.
    replicated = 2 if config.world_size > 1 and shards == 1 else 1
    optimizer = optimizer_bytes(config) * sum(p.numel() for p in trained)
    tokens, responses = tokens_per_micro_batch(config, prompt_tokens, shares_prompts=shares_prompts)
    return MemoryEstimate(
        weights=(trained_bytes + frozen_bytes) // shards,
        copies=gathered(model, computing) if shards > 1 else autocast_copies(trained, config),
        gradients=replicated * trained_bytes // shards,
        optimizer=optimizer // shards,
        activations=tokens * decoder_bytes_per_token(model, computing, checkpointing=config.gradient_checkpointing),
        head=head_bytes(model, computing, responses),
    )


def optimizer_bytes(config: VGPOConfig) -> int:
    """Bytes of optimizer state per float32 parameter."""
    return OPTIMISER_BYTES.get(OptimizerNames(config.optim).value, ADAM_BYTES)


def shards_of(config: VGPOConfig) -> int:
    """Number of devices over which a model is sharded: all under FSDP, from the recipe or `accelerate launch`; else
    1."""
    sharded = config.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return config.world_size if sharded else 1


def tokens_per_micro_batch(config: VGPOConfig, prompt_tokens: int, *, shares_prompts: bool) -> tuple[int, int]:
    """Tokens in the decoder, and the number of response tokens among them, assuming maximum length."""
    rollouts, group = config.per_device_train_batch_size, config.num_generations
    prompts = rollouts
    if shares_prompts:  # a micro-batch that ends within one group may begin within another
        prompts = math.ceil(rollouts / group) + (rollouts % group != 0 and group % rollouts != 0)
    responses = rollouts * config.max_completion_length
    return prompts * prompt_tokens + responses, responses


def decoder_bytes_per_token(model: PreTrainedModel, computing: int, *, checkpointing: bool) -> int:
    """Bytes that the decoder keeps per token for the backward pass, with `computing` bytes per value.

    With checkpointing, these are the inputs of all layers, and all activations of one layer while it is recomputed.
    """
    text = model.config.get_text_config()
    layers = text.num_hidden_layers
    widths = text.intermediate_size  # Gemma 3n has one for each layer
    width = max(widths) if isinstance(widths, (list, tuple)) else widths
    in_full = computing * (HIDDEN_KEPT * text.hidden_size + INTERMEDIATE_KEPT * width)
    return layers * computing * text.hidden_size + in_full if checkpointing else layers * in_full


def head_bytes(model: PreTrainedModel, computing: int, responses: int) -> int:
    """A tile of the logits, and float32 gradients of the head's weight and of the states that it reads."""
    weight = model.get_output_embeddings().weight
    tile = computing * min(responses, TOKEN_CHUNK_SIZE) * min(len(weight), VOCABULARY_CHUNK_SIZE)
    states = FLOAT32 * responses * model.config.get_text_config().hidden_size
    return tile + states + (FLOAT32 * weight.numel() if weight.requires_grad else 0)


def gathered(model: PreTrainedModel, computing: int) -> int:
    """Weights that are gathered on a device while all others are sharded: two layers, the embeddings and the head."""
    layers = [child for module in decoder_of(model).modules() if isinstance(module, nn.ModuleList) for child in module]
    largest = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    ends = {*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()}
    return computing * (2 * largest + sum(p.numel() for p in ends))


def autocast_copies(trained: list[nn.Parameter], config: VGPOConfig) -> int:
    """Size of the bfloat16 copies of trained float32 weights that autocast caches during a pass."""
    return BFLOAT16 * sum(p.numel() for p in trained if config.bf16 and p.dtype == torch.float32)
