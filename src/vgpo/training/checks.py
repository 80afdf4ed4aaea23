"""Checks of a rollout batch for faults that would otherwise silently make the focus wrong."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from vgpo.focus import decoder_of, layers_of, visual_token_mask
from vgpo.shaping import IMAGE_SIGNALS
from vgpo.training.batches import Batch


def check_decoder(model: nn.Module, signals: Collection[str]) -> None:
    """Check that the text decoder, and its layers if needed, can be found.

    Raises:
        ValueError: they cannot.
    """
    if not IMAGE_SIGNALS.isdisjoint(signals):
        decoder = decoder_of(model)
        if "layer_similarity" in signals:
            layers_of(decoder)


def check_num_rows(num_rows: int, generation_batch_size: int, group_size: int) -> None:
    """Check that the dataset has enough rows for one generation: with fewer, training would end without a step or
    error.

    Raises:
        ValueError: it does not.
    """
    num_prompts = generation_batch_size // group_size
    if num_rows < num_prompts:
        raise ValueError(
            f"The dataset has {num_rows} row(s), but one generation takes {num_prompts} prompts "
            f"(generation_batch_size={generation_batch_size} / num_generations={group_size}). Give more rows, or "
            "lower per_device_train_batch_size or gradient_accumulation_steps."
        )


def check_group_rows(row_index: Tensor, group_size: int) -> None:
    """Check rollouts (N,) of all processes: each `group_size` adjacent ones belong to one dataset row.

    Raises:
        RuntimeError: they are not.
    """
    groups = row_index.view(-1, group_size)
    mixed = (groups != groups[:, :1]).any(1).nonzero()
    if len(mixed):
        raise RuntimeError(
            f"Rollouts {int(mixed[0]) * group_size} and following belong to the prompts of rows "
            f"{groups[mixed[0, 0]].tolist()}, expected {group_size} adjacent rollouts of one prompt. The "
            "training sampler must repeat each row num_generations times."
        )


def check_visual_tokens(batch: Batch, visual_token_ids: Sequence[int]) -> None:
    """Check that each prompt with images has a visual token.

    Raises:
        ValueError: one has none; names its row.
    """
    num_images = [prompt.num_images for prompt in batch["prompts"]]
    has_image = torch.tensor(num_images, device=batch["visual_rows"].device) > 0
    blind = (has_image & ~batch["visual_rows"]).nonzero()
    if len(blind):
        rollout = int(blind[0, 0])
        raise ValueError(
            f"Row {int(batch['row_index'][rollout])} has {num_images[rollout]} image(s), but its prompt holds none of "
            f"the model's visual tokens {list(visual_token_ids)}. Check that the chat template of the processor "
            "writes the image token, and that model and processor belong together."
        )


def check_no_image_tokens(batch: Batch, banned_token_ids: Sequence[int]) -> None:
    """Check that the policy sampled no image token: a safeguard in addition to the ban, for any backend.

    Raises:
        RuntimeError: it did; names the row and the position.
    """
    sampled = visual_token_mask(batch["completion_ids"], list(banned_token_ids)) & batch["completion_mask"].bool()
    if "tool_mask" in batch:
        sampled &= batch["tool_mask"].bool()
    found = sampled.nonzero()
    if len(found):
        rollout, position = found[0].tolist()
        raise RuntimeError(
            f"A rollout of row {int(batch['row_index'][rollout])} holds the image token "
            f"{int(batch['completion_ids'][rollout, position])} at position {position}: the generation backend "
            f"ignored the ban on {list(banned_token_ids)}. Make it suppress these tokens."
        )


def check_no_tool_images(batch: Batch, visual_token_ids: Sequence[int], shaping: str) -> None:
    """Check that no response has an image from a tool: ablations only change prompts.

    Raises:
        ValueError: one has; names its row.
    """
    visual = visual_token_mask(batch["completion_ids"], list(visual_token_ids))
    found = (visual & batch["completion_mask"].bool()).any(1).nonzero()
    if len(found):
        raise ValueError(
            f"A tool has put an image into a rollout of row {int(batch['row_index'][int(found[0])])}, but "
            f"shaping={shaping!r} compares rollouts after ablated prompts, and cannot ablate images of responses. "
            "Choose another shaping, or a tool that returns text."
        )
