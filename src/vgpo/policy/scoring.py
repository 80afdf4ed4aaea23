"""Scoring passes over rollouts: with separate rows, or with each prompt computed once for its responses."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from vgpo.focus import (
    ALL_LAYERS,
    PROTOTYPE,
    Measure,
    Recording,
    record_similarity,
    record_summaries,
    visual_token_mask,
)
from vgpo.policy.blank_media import blank_media
from vgpo.policy.experts import balancing_loss, record_router_logits
from vgpo.policy.length_runs import CALL_COST, best_runs, runs_by_length
from vgpo.policy.prompts import EncodedPrompt, has_media, joined_media, prompt_columns, token_types
from vgpo.shared_prompt import (
    OpenPrompts,
    Prefix,
    States,
    is_sharded,
    last_uses,
    prompt_cache,
    prompt_positions,
    response_cache,
    states_of_prompts,
    with_cache,
)

MEASURES = {"similarity": PROTOTYPE, "layer_similarity": ALL_LAYERS}
SIMILARITIES = ("similarity", "predicting_similarity", "layer_similarity")


@dataclass(frozen=True)
class Scores:
    """Outputs of a pass for B responses of up to T tokens.

    Args:
        log_probs: (B, T), of the response tokens; 0 for padding.
        entropy: (B, T), or None if it was not requested from the head.
        similarity: cosine with the visual prototype of the state after reading each token (B, T), or None if not
        recorded.
        predicting_similarity: the same for the state that predicts each token, recorded together with it.
        layer_similarity: mean cosine with visual tokens over all layers (B, T), or None if not recorded.
        aux_loss: load-balancing loss of a mixture of experts, or None.
    """

    log_probs: Tensor
    entropy: Tensor | None
    similarity: Tensor | None
    predicting_similarity: Tensor | None
    layer_similarity: Tensor | None
    aux_loss: Tensor | None

    def widened(self, width: int) -> "Scores":
        """Padded to T = `width` with zeros on the right."""
        values = {name: value for name, value in vars(self).items() if name != "aux_loss" and value is not None}
        padded = {name: F.pad(value, (0, width - value.shape[1])) for name, value in values.items()}
        return replace(self, **padded)

    def signals(self) -> dict[str, Tensor]:
        """Detached signals for a shaping, by their names in `vgpo.shaping.Signals`."""
        outputs = {name: vars(self)[name] for name in ("log_probs", "entropy", *SIMILARITIES)}
        return {name: value.detach() for name, value in outputs.items() if value is not None}


@dataclass(frozen=True)
class Rows:
    """Padded rollouts: P prompt columns, then T response columns.

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
        """Chunks of `size` adjacent rows."""
        parts = [slice(start, start + size) for start in range(0, len(self.prompts), size)]
        return [
            Rows(self.input_ids[part], self.attention_mask[part], self.prompt_width, self.prompts[part])
            for part in parts
        ]

    def take(self, order: Sequence[int], width: int | None = None) -> "Rows":
        """The given rows in order, with `width` response columns or all."""
        end = self.input_ids.shape[1] if width is None else self.prompt_width + width
        if list(order) == list(range(len(self.prompts))):
            return Rows(self.input_ids[:, :end], self.attention_mask[:, :end], self.prompt_width, self.prompts)
        index = torch.tensor(order, device=self.input_ids.device)
        prompts = [self.prompts[i] for i in order]
        return Rows(self.input_ids[index, :end], self.attention_mask[index, :end], self.prompt_width, prompts)


@dataclass(frozen=True)
class ModelInput:
    """Model inputs for rows.

    Args:
        input_ids: (n, L).
        attention_mask: (n, L).
        labels: tokens to score, -100 elsewhere; (n, L).
        visual_prompt: image tokens of the prompts, bool (n, P).
        token_types: the fields that mark image tokens, (n, L) each.
        prompts: the prompt of each row.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    visual_prompt: Tensor
    token_types: dict[str, Tensor]
    prompts: Sequence[EncodedPrompt]


def padded_input(rows: Rows, visual_token_ids: list[int], model_type: str) -> ModelInput:
    """Inputs with separate rows; `model_type` is that of the model's config."""
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
    open_prompts: OpenPrompts | None = None,
    later: Sequence[Sequence[EncodedPrompt]] = (),
    agreed: Callable[[int], int] = int,
    media: Callable[[Sequence[EncodedPrompt]], dict[str, Any]] = joined_media,
    **kwargs: Any,
) -> Scores:
    """Run a model with a fused head (`trl.trainer.utils.add_fused_lm_head`) over rows.

    Args:
        model: the policy or a reference, wrapped or not.
        rows: the rows to score.
        visual_token_ids: ids of image tokens.
        share: compute a prompt once for all its rows.
        similarity: record visual similarity, of the states after the tokens and of those that predict them.
        layer_similarity: record visual similarity in all layers.
        blank: an image for the vision tower in text-only passes.
        batch_size: rows at a time; all by default.
        open_prompts: shared prompts that earlier calls have computed, and that later ones may use; none by default.
        later: the prompts of each following call with the same `open_prompts` and a separate backward pass.
        agreed: maximum of a number over all processes, so that they run the same number of passes.
        media: model inputs for the images of prompts.
        kwargs: passed on to the model.
    """
    requested = {"similarity": similarity, "layer_similarity": layer_similarity}
    measures = {name: measure for name, measure in MEASURES.items() if requested[name]}
    scorer = Scorer(model, visual_token_ids, measures, blank, agreed, media, kwargs)
    open_prompts = OpenPrompts() if open_prompts is None else open_prompts
    chunks = rows.chunks(batch_size or len(rows.prompts))
    passes = [*(chunk.prompts for chunk in chunks), *later]
    scores = []
    for number, chunk in enumerate(chunks, 1):
        kinds: dict[bool, list[int]] = {}
        for row, prompt in enumerate(chunk.prompts):
            kinds.setdefault(share and can_share(prompt, visual_token_ids), []).append(row)
        parts = [
            scorer.shared(chunk.take(of_kind), open_prompts, last_uses(passes[number - 1 :]), last_uses(later))
            if shares
            else scorer.separate(chunk.take(of_kind))
            for shares, of_kind in kinds.items()
        ]
        scores.append(joined(parts, list(kinds.values())))
    return joined(scores)


def joined(scores: Sequence[Scores], places: Sequence[Sequence[int]] | None = None) -> Scores:
    """Concatenate the scores of several groups of rows, or put each row in its place.

    Widths may differ: all are padded on the right.
    """
    if len(scores) == 1:
        return scores[0]
    width = max(score.log_probs.shape[1] for score in scores)
    order = None if places is None else torch.tensor([row for place in places for row in place]).argsort()
    aux_losses = [score.aux_loss for score in scores if score.aux_loss is not None]

    def join(name: str) -> Any:
        parts = [vars(score)[name] for score in scores]
        if parts[0] is None:
            return None
        rows = torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])
        return rows if order is None else rows[order.to(rows.device)]

    names = ("log_probs", "entropy", *SIMILARITIES)
    return Scores(
        **{name: join(name) for name in names}, aux_loss=torch.stack(aux_losses).mean() if aux_losses else None
    )


@dataclass(frozen=True)
class Scorer:
    """Scores rows with a model; arguments as in `score_rows`.

    Args:
        measures: what to record in addition to the head's outputs, by field of `Scores`.
        options: passed on to the model.
    """

    model: nn.Module
    visual_token_ids: list[int]
    measures: Mapping[str, Measure]
    blank: dict[str, Tensor] | None
    agreed: Callable[[int], int]
    media: Callable[[Sequence[EncodedPrompt]], dict[str, Any]]
    options: dict[str, Any]

    @property
    def config(self) -> Any:
        return extract_model_from_parallel(self.model).config

    @property
    def text_config(self) -> Any:
        return self.config.get_text_config(decoder=True)

    @property
    def shared_options(self) -> dict[str, Any]:
        """Options of a pass over only prompts or only responses, for which the head cannot compute a balancing
        loss."""
        return {**self.options, "output_router_logits": False} if self.balances else self.options

    @property
    def balances(self) -> bool:
        """Whether the load-balancing loss of a mixture of experts is requested."""
        return bool(self.options.get("output_router_logits"))

    def separate(self, rows: Rows) -> Scores:
        """Score each row with its own copy of the prompt."""
        inputs = padded_input(rows, self.visual_token_ids, self.config.model_type)
        with ExitStack() as stack:
            recordings = {
                name: stack.enter_context(record_similarity(self.model, inputs.visual_prompt, measure))
                for name, measure in self.measures.items()
            }
            stack.enter_context(self._vision(rows.prompts))
            outputs = self.model(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                labels=inputs.labels,
                fused_lm_head=True,
                **inputs.token_types,
                **self.media(inputs.prompts),
                **self.options,
            )
        return scores_of(outputs, recordings, rows.input_ids.shape[1] - rows.prompt_width)

    def _vision(self, prompts: Sequence[EncodedPrompt]) -> AbstractContextManager[None]:
        """Inside the block, a pass over prompts runs the vision tower if other processes do."""
        return blank_media(self.model, self.blank) if self.blank and not has_media(prompts) else nullcontext()

    # Shared prompts

    def shared(
        self, rows: Rows, open_prompts: OpenPrompts, last_use: Mapping[int, int], later: Mapping[int, int]
    ) -> Scores:
        """Score responses with each prompt computed once.

        Args:
            rows: of this pass.
            open_prompts: prompts that earlier passes have computed.
            last_use: see `OpenPrompts.take`.
            later: prompts needed by passes with another backward pass, by their `id`.
        """
        read = partial(self.read, device=rows.input_ids.device)
        prefixes = open_prompts.take(rows.prompts, last_use, read)
        unique = list({id(prefix): prefix for prefix in prefixes}.values())
        detached = [torch.is_grad_enabled() and id(prefix.prompt) in later for prefix in unique]
        states = [
            open_prompts.states_of(prefix, detached=apart) for prefix, apart in zip(unique, detached, strict=True)
        ]
        owners = [unique.index(prefix) for prefix in prefixes]
        lengths = response_lengths(rows)
        num_runs = self.agreed(best_runs(lengths, CALL_COST.get(rows.input_ids.device.type, 0)))
        places = runs_by_length(lengths, num_runs)
        runs = [rows.take(place, max(lengths[row] for row in place)) for place in places]
        with ExitStack() as stack:
            routers = stack.enter_context(record_router_logits(self.model)) if self.balances else []
            parts = [
                self.respond(run, unique, states, [owners[row] for row in place])
                for run, place in zip(runs, places, strict=True)
            ]
        scores = joined(parts, places).widened(rows.input_ids.shape[1] - rows.prompt_width)
        if self.balances:
            prompts = [tuple(layer[0] for layer in of_prompt[-1]) for of_prompt in states]
            times = [torch.full_like(layers[0][:, 0], owners.count(i)) for i, layers in enumerate(prompts)]
            masks = [run.attention_mask[:, run.prompt_width - 1 :].flatten() for run in runs]
            aux_loss = balancing_loss(self.text_config, [*prompts, *routers], [*times, *masks])
            scores = replace(scores, aux_loss=aux_loss)
        if torch.is_grad_enabled() and is_sharded(self.model):
            # Only keys and values of a prompt have a gradient, so the backward pass would not gather the weights after
            # the last layer's.
            anchors = [prefix.anchor for prefix, apart in zip(unique, detached, strict=True) if not apart]
            zero = sum(anchor.sum() * 0 for anchor in anchors if anchor is not None)
            scores = replace(scores, log_probs=scores.log_probs + zero)
        return scores

    def read(self, prompts: Sequence[EncodedPrompt], device: torch.device) -> list[Prefix]:
        """One pass over prompts without their last tokens."""
        # Padding must not be an image token, which would require an image: use the last token of a prompt, which is
        # none.
        columns = prompt_columns(prompts, prompts[0].token_ids[-1], device)
        ids, mask = columns["prompt_ids"][:, :-1], columns["prompt_mask"][:, :-1]
        visual = visual_token_mask(ids, self.visual_token_ids) & mask.bool()
        types = token_types(prompts, F.pad(visual, (0, 1)), ids.shape[1] + 1)
        cache = prompt_cache(self.text_config)
        with ExitStack() as stack:
            summaries = {
                name: stack.enter_context(record_summaries(self.model, visual, measure))
                for name, measure in self.measures.items()
            }
            positions = stack.enter_context(prompt_positions(self.model))
            routers = stack.enter_context(record_router_logits(self.model)) if self.balances else []
            stack.enter_context(self._vision(prompts))
            outputs = self.model(
                input_ids=ids,
                attention_mask=mask,
                labels=torch.full((len(ids), 2), -100, device=device),
                fused_lm_head=True,
                **{name: values[:, :-1] for name, values in types.items()},
                **self.media(prompts),
                **stack.enter_context(with_cache(self.model, cache)),
                **self.shared_options,
            )
        lengths = [len(prompt.token_ids) - 1 for prompt in prompts]
        states = states_of_prompts(cache, lengths)
        for logits in routers:  # of this pass; stored with the states as one more layer
            layers = [layer.view(len(ids), -1, layer.shape[-1]).split(1) for layer in logits]
            for own, of_prompt, length in zip(states, zip(*layers, strict=True), lengths, strict=True):
                own.append(tuple(layer[:, -length:] for layer in of_prompt))
        means = {name: summary() for name, summary in summaries.items()}  # (layers, n, D)
        assert positions.next is not None
        # Otherwise it would only keep the graph of the last layer alive, which has no gradient.
        anchor = outputs.log_probs if is_sharded(self.model) else None
        return [
            Prefix(prompt, own, position, {name: mean[:, i] for name, mean in means.items()}, anchor)
            for i, (prompt, own, position) in enumerate(zip(prompts, states, positions.next, strict=True))
        ]

    def respond(
        self, rows: Rows, prefixes: Sequence[Prefix], states: Sequence[Sequence[States]], owners: Sequence[int]
    ) -> Scores:
        """One pass over the last prompt token and the response of each row.

        Args:
            rows: of the pass.
            prefixes: of their prompts.
            states: states of each prefix, detached or attached.
            owners: for each row, its prefix.
        """
        first = rows.prompt_width - 1
        ids, mask = rows.input_ids[:, first:], rows.attention_mask[:, first:]
        length = max(prefix.length for prefix in prefixes)
        columns = torch.arange(length, device=ids.device)
        pads = torch.tensor([length - prefixes[owner].length for owner in owners], device=ids.device)
        position = torch.stack([prefix.position for prefix in prefixes])[torch.tensor(owners, device=ids.device)]
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, 0] = -100
        cache = response_cache(self.text_config, states, owners, length)
        with ExitStack() as stack:
            recordings = {}
            for name, measure in self.measures.items():
                means = torch.stack([prefixes[owner].visual_means[name] for owner in owners], dim=1)
                recordings[name] = stack.enter_context(record_similarity(self.model, None, measure, list(means)))
            outputs = self.model(
                input_ids=ids,
                attention_mask=torch.cat([(columns >= pads[:, None]).to(mask.dtype), mask], dim=1),
                position_ids=position[:, None] + torch.arange(ids.shape[1], device=ids.device),
                labels=labels,
                fused_lm_head=True,
                **stack.enter_context(with_cache(self.model, cache)),
                **self.shared_options,
            )
        return scores_of(outputs, recordings, ids.shape[1] - 1)


def can_share(prompt: EncodedPrompt, visual_token_ids: Sequence[int]) -> bool:
    """Whether a prompt can be computed separately, without its last token, which is prepended to each response.

    Not if that is an image token, because each needs its own feature, or if the response contains images from tools.
    """
    ends_in_text = len(prompt.token_ids) > 1 and prompt.token_ids[-1] not in visual_token_ids
    return ends_in_text and not prompt.num_tool_images


def response_lengths(rows: Rows) -> list[int]:
    """Length of each response, at least 1."""
    mask = rows.attention_mask[:, rows.prompt_width :]
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * places).amax(1).clamp(min=1).tolist()


def scores_of(outputs: Any, recordings: Mapping[str, Recording], width: int) -> Scores:
    """The scores of the last `width` columns."""
    similarity = {name: recording.similarity for name, recording in recordings.items()}
    if "similarity" in recordings:
        similarity["predicting_similarity"] = recordings["similarity"].predicting_similarity
    return Scores(
        log_probs=outputs.log_probs[:, -width:],
        entropy=None if outputs.entropy is None else outputs.entropy[:, -width:],
        aux_loss=outputs.aux_loss,
        **{name: similarity.get(name) for name in SIMILARITIES},
    )
