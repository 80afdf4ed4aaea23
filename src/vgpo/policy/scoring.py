"""One forward pass over rollouts: separate rows, or one packed row for all rollouts of a prompt."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from vgpo.focus import record_layer_similarity, record_similarity, visual_token_mask
from vgpo.policy.blank_media import blank_media
from vgpo.policy.prompts import EncodedPrompt, has_media, joined_media, token_types
from vgpo.shared_prompt import Packing, pack_prompts, packed_rows


@dataclass(frozen=True)
class Scores:
    """Outputs of a pass for B responses of up to T tokens.

    Args:
        log_probs: (B, T), of the policy's tokens; 0 for padding.
        entropy: (B, T), or None where the model's head was not asked for it.
        similarity: cosine with the visual prototype (B, T), or None where it was not recorded.
        layer_similarity: mean cosine with visual tokens over all layers (B, T), or None where it was not recorded.
        aux_loss: load-balancing loss of a mixture of experts, or None.
    """

    log_probs: Tensor
    entropy: Tensor | None
    similarity: Tensor | None
    layer_similarity: Tensor | None
    aux_loss: Tensor | None

    def signals(self) -> dict[str, Tensor]:
        """What a shaping may look at, detached, by its name in `vgpo.shaping.Signals`."""
        outputs = {name: vars(self)[name] for name in ("log_probs", "entropy", "similarity", "layer_similarity")}
        return {name: value.detach() for name, value in outputs.items() if value is not None}


@dataclass(frozen=True)
class Rows:
    """Rollouts as they are padded: P prompt columns, then T response columns.

    Args:
        input_ids: (B, P + T).
        attention_mask: (B, P + T).
        prompt_width: P.
        prompts: the prompt of each row.
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompt_width: int
    prompts: Sequence[EncodedPrompt]

    def chunks(self, size: int) -> list["Rows"]:
        """Neighbouring rows, `size` at a time."""
        parts = [slice(start, start + size) for start in range(0, len(self.prompts), size)]
        return [
            Rows(self.input_ids[part], self.attention_mask[part], self.prompt_width, self.prompts[part])
            for part in parts
        ]

    def packing(self, visual_token_ids: Sequence[int]) -> Packing | None:
        """How the rows can be packed, or None if no two of them share a prompt.

        Nor if a prompt ends in an image token: a prompt's last token is repeated, and this one has but one feature.
        """
        prompt_of_row = [id(prompt) for prompt in self.prompts]
        if len(set(prompt_of_row)) == len(self.prompts):
            return None
        if any(prompt.token_ids[-1] in visual_token_ids for prompt in self.prompts):
            return None
        return pack_prompts(self.attention_mask, self.prompt_width, prompt_of_row)


@dataclass(frozen=True)
class ModelInput:
    """Rows in the form in which the model reads them.

    Args:
        input_ids: (n, L).
        attention_mask: (n, L).
        labels: what the head scores, -100 elsewhere: (n, L), or (B, 1 + T) after unpacking.
        visual_prompt: image tokens of the prompts, bool (n, P or more).
        token_types: the fields that mark image tokens, (n, L) each.
        prompts: the prompt of each row.
        packing: how the rows were packed, if they were.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    visual_prompt: Tensor
    token_types: dict[str, Tensor]
    prompts: Sequence[EncodedPrompt]
    packing: Packing | None


def padded_input(rows: Rows, visual_token_ids: list[int], model_type: str) -> ModelInput:
    """Each row for itself; `model_type` is that of the model's config."""
    labels = rows.input_ids.masked_fill(rows.attention_mask == 0, -100)
    labels[:, : rows.prompt_width] = -100
    visual = visual_token_mask(rows.input_ids, visual_token_ids) & rows.attention_mask.bool()
    return ModelInput(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        labels=labels,
        visual_prompt=visual[:, : rows.prompt_width],
        token_types=token_types(rows.prompts, visual, rows.prompt_width, model_type),
        prompts=rows.prompts,
        packing=None,
    )


def packed_input(rows: Rows, visual_token_ids: list[int], packing: Packing, model_type: str) -> ModelInput:
    """One row for each prompt; the decoder gives the rows of responses back, which the labels fit."""
    padded = padded_input(rows, visual_token_ids, model_type)
    width = rows.input_ids.shape[1] - rows.prompt_width
    return ModelInput(
        input_ids=packing.pack(rows.input_ids),
        attention_mask=packing.attention_mask,
        labels=padded.labels[:, rows.prompt_width - 1 :],
        visual_prompt=packing.pack(nn.functional.pad(padded.visual_prompt, (0, width))),
        token_types={name: packing.pack(types) for name, types in padded.token_types.items()},
        prompts=[rows.prompts[owner] for owner in packing.representative_rows],
        packing=packing,
    )


def score_rows(
    model: nn.Module,
    rows: Rows,
    visual_token_ids: list[int],
    *,
    share: bool,
    similarity: bool,
    layer_similarity: bool = False,
    blank: dict[str, Tensor] | None = None,
    batch_size: int | None = None,
    **kwargs: Any,
) -> Scores:
    """Run a model with a fused head (`trl.trainer.utils.add_fused_lm_head`) over rows.

    Args:
        model: the policy or a reference, wrapped or not.
        rows: what it reads.
        visual_token_ids: ids of image tokens.
        share: compute a prompt once for all rows of a batch that share it.
        similarity: record visual similarity.
        layer_similarity: record visual similarity in all layers.
        blank: an image that the vision tower looks at in passes over text alone.
        batch_size: rows at a time; all by default.
        kwargs: passed on to the model.
    """
    recorded = {"similarity": similarity, "layer_similarity": layer_similarity}
    scores = [
        _score_chunk(model, chunk, visual_token_ids, share=share, blank=blank, **recorded, **kwargs)
        for chunk in rows.chunks(batch_size or len(rows.prompts))
    ]
    aux_losses = [score.aux_loss for score in scores if score.aux_loss is not None]
    return Scores(
        log_probs=torch.cat([score.log_probs for score in scores]),
        entropy=_joined([score.entropy for score in scores]),
        similarity=_joined([score.similarity for score in scores]),
        layer_similarity=_joined([score.layer_similarity for score in scores]),
        aux_loss=torch.stack(aux_losses).mean() if aux_losses else None,
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _score_chunk(
    model: nn.Module,
    rows: Rows,
    visual_token_ids: list[int],
    *,
    share: bool,
    similarity: bool,
    layer_similarity: bool,
    blank: dict[str, Tensor] | None,
    **kwargs: Any,
) -> Scores:
    packing = rows.packing(visual_token_ids) if share else None
    model_type = extract_model_from_parallel(model).config.model_type
    if packing is None:
        inputs = padded_input(rows, visual_token_ids, model_type)
    else:
        inputs = packed_input(rows, visual_token_ids, packing, model_type)
    recorder = layer_mean = None
    with ExitStack() as stack:
        # Before the packing takes the prompts away.
        unpack = None if packing is None else packing.responses_of
        if similarity:
            recorder = stack.enter_context(record_similarity(model, inputs.visual_prompt, unpack))
        if layer_similarity:
            layer_mean = stack.enter_context(record_layer_similarity(model, inputs.visual_prompt, unpack))
        if packing is not None:
            stack.enter_context(packed_rows(model, packing))
        if blank and not has_media(rows.prompts):
            stack.enter_context(blank_media(model, blank))
        outputs = model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            labels=inputs.labels,
            fused_lm_head=True,
            **inputs.token_types,
            **joined_media(inputs.prompts),
            **kwargs,
        )
    width = rows.input_ids.shape[1] - rows.prompt_width
    return Scores(
        log_probs=outputs.log_probs[:, -width:],
        entropy=None if outputs.entropy is None else outputs.entropy[:, -width:],
        similarity=None if recorder is None else recorder.similarity,
        layer_similarity=None if layer_mean is None else layer_mean(),
        aux_loss=outputs.aux_loss,
    )
