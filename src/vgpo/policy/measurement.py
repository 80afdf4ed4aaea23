"""Compare a scoring pass with plain passes over single rows; the lines of `vgpo.policy.parity`."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig

from vgpo.focus import banned_token_ids, decoder_of, last_hidden_state, visual_token_mask
from vgpo.policy.blank_media import blank_media
from vgpo.policy.generation import Responses, as_responses, respond
from vgpo.policy.probes import FAULTS, SEED, Probes, with_other_pixels
from vgpo.policy.prompts import EncodedPrompt, joined_media, prompt_columns, response_type
from vgpo.policy.sampled import record_sampled, record_sampled_similarity
from vgpo.policy.scoring import Rows, Scores, score_rows
from vgpo.policy.undisturbed import training_without_dropout, undisturbed
from vgpo.shared_prompt import OpenPrompts

MAX_TOKENS = 32  # of a sampled response
SAMPLES = 2  # responses per prompt
RUNS = 2  # runs by length in a shared pass
SHORTER = (1.0, 0.5, 0.75, 0.34)  # the kept share of each response, so that rows have different lengths
SPECIAL_TOKENS_AT_ONCE = 512

# Consequence of a difference: a fallback of the host, or the end of the run; OPTIONAL lines are only reported.
OWN_HEAD, SEPARATE_ROWS, RUN_TOWER, SCORING_PASS = "own head", "separate rows", "tower in each pass", "scoring pass"
STOP, OPTIONAL = "stop", "report"


class Tolerance(NamedTuple):
    """Largest mean differences that rounding can explain."""

    log_probs: float  # nats per token
    focus: float  # of a cosine
    gradient: float  # of the largest gradient norm


# By the dtype in which the model computes.
TOLERANCES = {
    torch.float32: Tolerance(1e-3, 1e-3, 1e-3),
    torch.float16: Tolerance(2e-2, 1e-2, 5e-2),
    torch.bfloat16: Tolerance(6e-2, 3e-2, 1e-1),
}


@dataclass(frozen=True)
class Gap:
    """A line of the table: a comparison and its difference.

    Args:
        name: what was compared.
        mean: mean absolute difference; NaN if it cannot be measured.
        largest: largest absolute difference.
        tolerance: largest mean that passes.
        remedy: consequence of a failure; OWN_HEAD, SEPARATE_ROWS, RUN_TOWER, SCORING_PASS, STOP or OPTIONAL.
        problem: why it failed, if there is no number.
        note: additional information.
    """

    name: str
    mean: float = float("nan")
    largest: float = float("nan")
    tolerance: float = 0.0
    remedy: str = STOP
    problem: str = ""
    note: str = ""

    @property
    def passes(self) -> bool:
        return not self.problem and self.mean <= self.tolerance

    @property
    def result(self) -> str:
        if self.problem:
            return self.problem
        return "same" if self.largest == 0 else f"{self.mean:.1e} (max {self.largest:.1e})"


@dataclass(frozen=True, kw_only=True)
class Host:
    """The model as a host runs it.

    Args:
        model: the policy, wrapped or not, with a fused head.
        visual_token_ids: ids of image tokens.
        decoding: generation config; banned tokens are its `suppress_tokens`.
        temperature: of sampling and scoring.
        special_token_ids: all special tokens of the tokenizer.
        pad_token_id: of the tokenizer.
        autocast: the precision of a scoring pass.
        generating: context manager that yields the generating model.
        share: whether scoring shares prompts.
        needs_blank: whether several processes train together.
        backward: runs the backward pass of a loss; None if the host cannot run one separately.
        largest: maximum of a tensor over all processes.
        token_of: the text of a token.
        media: inputs for the images of prompts in scoring.
    """

    model: nn.Module
    visual_token_ids: list[int]
    decoding: GenerationConfig
    temperature: float
    special_token_ids: Sequence[int]
    pad_token_id: int
    autocast: Callable[[], AbstractContextManager[Any]]
    generating: Callable[[], AbstractContextManager[Any]]
    share: bool
    needs_blank: bool = False
    backward: Callable[[Tensor], None] | None = None
    largest: Callable[[Tensor], Tensor] = lambda values: values
    token_of: Callable[[int], str] = str
    media: Callable[[Sequence[EncodedPrompt]], dict[str, Any]] = joined_media

    @property
    def keeps_outputs(self) -> bool:
        """Whether outputs of the vision tower are kept for several passes."""
        return self.media is not joined_media

    @property
    def vlm(self) -> Any:
        """The model without wrappers of processes and adapters."""
        vlm = extract_model_from_parallel(self.model)
        return vlm.get_base_model() if hasattr(vlm, "get_base_model") else vlm

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the scoring path."""
        with self.autocast():
            if torch.is_autocast_enabled(self.device.type):
                return torch.get_autocast_dtype(self.device.type)
        return self.vlm.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.model.parameters()).device


class SingleRow(NamedTuple):
    """Outputs of a plain forward pass over one unpadded row, with P prompt and T response tokens."""

    log_probs: Tensor  # (T,)
    states: Tensor  # last hidden states, (P + T, D)
    embeddings: Tensor  # inputs of the decoder, (P, D)


class Measurement:
    """Compares scoring with single rows, for the responses to some prompts.

    Args:
        host: the model as it is run.
        probes: the prompts.
    """

    def __init__(self, host: Host, probes: Probes) -> None:
        self.host = host
        self.probes = probes
        self.prompts = [prompt for prompt in probes.prompts for _ in range(SAMPLES)]
        self.text = probes.text
        self.has_images = any(prompt.media for prompt in self.prompts)
        self.sampled_similarity: Tensor | None = None  # with `responses`; (B, 1 + T)
        self.model_type = host.vlm.config.model_type
        self.tolerance = TOLERANCES.get(host.dtype, TOLERANCES[torch.bfloat16])

    # Inputs of the comparisons

    @cached_property
    def responses(self) -> tuple[Responses, Tensor]:
        """Sampled responses, truncated to different lengths, and the log-probabilities from which they were
        sampled."""
        decoding = self.host.decoding
        columns = prompt_columns(self.prompts, self.host.pad_token_id, self.host.device)
        visual = visual_token_mask(columns["prompt_ids"], self.host.visual_token_ids)
        with (
            self.host.autocast(),
            self.host.generating() as model,
            record_sampled(model, self.host.temperature) as sampled,
            record_sampled_similarity(model, visual, sampled) if self.has_images else nullcontext() as focus,
        ):
            found = respond(model, self.prompts, decoding, seed=SEED)
        self.sampled_similarity = None if focus is None else focus.columns
        log_probs = sampled.log_probs(found.rows.input_ids[:, -1])
        lengths = found.mask.sum(1).tolist()
        kept = [max(1, int(length * share)) for length, share in zip(lengths, SHORTER, strict=False)]
        ids = [row[:length].tolist() for row, length in zip(found.ids, kept, strict=True)]
        return self._of(self.prompts, ids), log_probs

    def _of(self, prompts: Sequence[EncodedPrompt], token_ids: Sequence[Sequence[int]]) -> Responses:
        return as_responses(prompts, token_ids, self.host.pad_token_id, self.host.device)

    @cached_property
    def separate(self) -> Scores:
        return self._scores(self.responses[0].rows, share=False)

    @cached_property
    def singles(self) -> list[SingleRow]:
        responses, _ = self.responses
        rows = zip(self.prompts, responses.ids, responses.mask, strict=True)
        return [self._single(prompt, ids[mask]) for prompt, ids, mask in rows]

    def _scores(self, rows: Rows, *, share: bool, similarity: bool = True, **options: Any) -> Scores:
        with self.host.autocast():
            return score_rows(
                self.host.model, rows, self.host.visual_token_ids, share=share,
                similarity=similarity and self.has_images, agreed=lambda _: RUNS,
                **{"media": self.host.media, **options},
            )  # fmt: skip

    def _single(self, prompt: EncodedPrompt, response: Tensor) -> SingleRow:
        """A plain pass: one row, no padding, only the model's own head."""
        length, count = len(prompt.token_ids), len(response)
        ids = torch.cat([torch.tensor(prompt.token_ids, device=response.device), response])[None]
        types = {
            name: [*values, *[response_type(self.model_type, name)] * count]
            for name, values in prompt.token_types.items()
        }
        keeps_some = "logits_to_keep" in inspect.signature(type(self.host.vlm).forward).parameters
        seen: dict[str, Tensor] = {}

        def note_input(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            embeddings = kwargs.get("inputs_embeds", args[0] if args else None)
            if embeddings is not None and embeddings.is_floating_point():
                seen["embeddings"] = embeddings[0, :length]

        def note_output(decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen["states"] = last_hidden_state(output)[0]

        decoder = decoder_of(self.host.model)
        handles = [
            decoder.register_forward_pre_hook(note_input, with_kwargs=True), decoder.register_forward_hook(note_output)
        ]  # fmt: skip
        try:
            with self.host.autocast():
                output = self.host.model(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    use_cache=False,
                    output_hidden_states=True,
                    **({"logits_to_keep": count + 1} if keeps_some else {}),
                    **{name: torch.tensor([values], device=ids.device) for name, values in types.items()},
                    **prompt.media,
                )
        finally:
            for handle in handles:
                handle.remove()
        logits = output.logits[0, -count - 1 : -1].float() / self.host.temperature
        log_probs = logits.log_softmax(-1).gather(-1, response[:, None])[:, 0]
        hidden = output.get("hidden_states")
        # Some decoders keep several streams of hidden states; the returned one is the last.
        listed = hidden[-1][0] if hidden and hidden[-1].shape[1:] == (ids.shape[1], seen["states"].shape[-1]) else None
        states = seen["states"] if listed is None else listed
        return SingleRow(log_probs, states, seen.get("embeddings", states[:0]))

    # Comparisons

    def scoring(self) -> Gap:
        """Log-probabilities of padded rows from the scoring head against the model's own logits for single rows."""
        mask = self.responses[0].mask
        return self._gap("log-probs, single rows", [
            row[kept] - single.log_probs
            for row, kept, single in zip(self.separate.log_probs, mask, self.singles, strict=True)
        ], self.tolerance.log_probs)  # fmt: skip

    def sampling(self) -> Gap:
        """Log-probabilities of padded rows against those from which `generate` sampled."""
        responses, sampled = self.responses
        width = responses.mask.shape[1]
        gap = (self.separate.log_probs - sampled[:, :width])[responses.mask]
        return self._gap("log-probs, sampled", [gap], self.tolerance.log_probs)

    def kept_outputs(self) -> Gap:
        """Outputs of the vision tower that are kept for several passes against those of each pass."""
        responses, mask = self.responses[0], self.responses[0].mask
        again = self._scores(responses.rows, share=False, similarity=False, media=joined_media)
        gap = (self.separate.log_probs - again.log_probs)[mask]
        return self._gap("log-probs, kept vision outputs", [gap], self.tolerance.log_probs)

    def sampled_focus(self) -> list[Gap]:
        """Visual similarity of padded rows against that recorded during `generate`."""
        mask = self.responses[0].mask
        if self.sampled_similarity is None:
            return []
        sampled = states_of_tokens(self.sampled_similarity[:, : mask.shape[1] + 1])
        gap = similarities(self.separate) - sampled
        return [self._gap("focus, sampled", [gap[mask]], self.tolerance.focus)]

    def sharing(self) -> list[Gap]:
        """Shared prompts against separate rows: outputs, and one backward pass."""
        responses, mask = self.responses[0], self.responses[0].mask
        shared = self._scores(responses.rows, share=True)
        name = "log-probs, shared prompts"
        gaps = [self._gap(name, [(shared.log_probs - self.separate.log_probs)[mask]], self.tolerance.log_probs)]
        if self.has_images:
            gap = (similarities(shared) - similarities(self.separate))[mask]
            gaps.append(self._gap("focus, shared prompts", [gap], self.tolerance.focus))
        return gaps + self._gradient_gap()

    def _gradient_gap(self) -> list[Gap]:
        if self.host.backward is None:
            return []
        shared, separate = self._gradient_numbers(share=True), self._gradient_numbers(share=False)
        # Over all processes: a shard may have almost no gradient.
        scale = self.host.largest(separate[:, 0].max()[None]).clamp(min=torch.finfo(torch.float32).tiny)
        gap = ((shared - separate).abs() / scale).flatten()
        # A single wrong parameter must not be averaged away.
        name = "gradients, shared prompts"
        return [self._gap(name, [gap.max()[None]], self.tolerance.gradient)]

    def _gradient_numbers(self, *, share: bool) -> Tensor:
        """Norm and one random projection of each parameter's gradient, (parameters, 2), without a copy of any."""
        assert self.host.backward is not None
        responses = self.responses[0]
        draw = torch.Generator().manual_seed(SEED)
        signs = (torch.randint(0, 2, responses.mask.shape, generator=draw) * 2 - 1).to(responses.mask.device)
        weights = (signs * responses.mask).split(1)
        # One row per backward pass, so that shared prompts are passed between them.
        chunks, open_prompts = responses.rows.chunks(1), OpenPrompts()
        with training_without_dropout(self.host.model), torch.enable_grad():
            for number, (rows, weight) in enumerate(zip(chunks, weights, strict=True), 1):
                later = [chunk.prompts for chunk in chunks[number:]]
                scores = self._scores(rows, share=share, similarity=False, open_prompts=open_prompts, later=later)
                self.host.backward((scores.log_probs * weight).sum())
        numbers = []
        for index, parameter in enumerate(self.host.model.parameters()):
            if parameter.grad is not None:
                numbers.append(norm_and_projection(parameter.grad, index))
                parameter.grad = None
        return torch.stack(numbers)

    def visual_mask(self) -> Gap:
        """Check which decoder inputs change with the pixels: image tokens must, and others must not."""
        name = "image tokens"
        image_tokens = constants = 0
        for index in range(0, len(self.prompts), SAMPLES):
            prompt, single = self.prompts[index], self.singles[index]
            other = self._single(with_other_pixels(prompt), self.responses[0].ids[index][:1])
            changed = (other.embeddings != single.embeddings).any(-1).cpu()
            masked = visual_token_mask(torch.tensor(prompt.token_ids), self.host.visual_token_ids)
            if problem := mask_problem(prompt.token_ids, changed, masked):
                return Gap(name, problem=problem)
            image_tokens += int(masked.sum())
            constants += int((masked & ~changed).sum())
        note = f"{image_tokens} tokens"
        note += f", {constants} of them learned separators" if constants else ""
        return Gap(name, 0.0, 0.0, note=note)

    def focus(self) -> Gap:
        """Recorded visual similarity against cosines of `output_hidden_states` of single rows."""
        differences = []
        rows = zip(self.prompts, similarities(self.separate), self.responses[0].mask, self.singles, strict=True)
        for prompt, similarity, mask, single in rows:
            length, states = len(prompt.token_ids), single.states.float()
            visual = [i for i, token in enumerate(prompt.token_ids) if token in self.host.visual_token_ids]
            prototype = states[visual].mean(0, keepdim=True)
            columns = torch.cosine_similarity(states[length - 1 :], prototype, dim=-1)
            differences.append(similarity[mask] - states_of_tokens(columns))
        return self._gap("focus, single rows", differences, self.tolerance.focus)

    def text_rows(self) -> Gap:
        """Rows without an image in a batch with rows that have one."""
        assert self.text is not None
        ids = [row[kept].tolist() for row, kept in zip(self.responses[0].ids, self.responses[0].mask, strict=True)]
        prompts = [self.text] * SAMPLES + self.prompts[:SAMPLES]
        responses = self._of(prompts, ids[: len(prompts)])
        scores = self._scores(responses.rows, share=False)
        gaps = []
        for i in range(SAMPLES):
            mask = responses.mask[i]
            gaps.append(scores.log_probs[i][mask] - self._single(self.text, responses.ids[i][mask]).log_probs)
        return self._gap("text rows, single rows", gaps, self.tolerance.log_probs)

    def blank(self) -> Gap:
        """A blank image, which keeps processes in sync, must not change the result."""
        assert self.text is not None
        assert self.probes.blank is not None
        responses = self._of([self.text], [self.responses[0].ids[0][:2].tolist()])
        plain = self._scores(responses.rows, share=False, similarity=False).log_probs
        with blank_media(self.host.model, self.probes.blank):
            blank = self._scores(responses.rows, share=False, similarity=False).log_probs
        return self._gap("text rows, blank image", [blank - plain], 0.0)

    def special_tokens(self) -> Gap:
        """Check that media tokens are banned, and that responses with any other special token can be scored."""
        banned = set(self.host.decoding.suppress_tokens or ())
        if missing := sorted(set(banned_token_ids(self.host.vlm.config)) - banned):
            named = ", ".join(f"{self.host.token_of(token)!r} (id {token})" for token in missing)
            return Gap("special tokens", problem=f"{named} may be generated, and represents an image or audio")
        allowed = [token for token in self.host.special_token_ids if token not in banned][:SPECIAL_TOKENS_AT_ONCE]
        found = self._unreadable(allowed)
        name = "special tokens"
        if found is None:
            return Gap(name, 0.0, 0.0, note=f"{len(allowed)} may be generated")
        token, error = found
        return Gap(name, problem=(
            f"a response that contains {self.host.token_of(token)!r} (id {token}) cannot be scored ({_words(error)}); "
            f"set generation_kwargs: {{suppress_tokens: [{token}]}}"
        ))  # fmt: skip

    def _unreadable(self, tokens: Sequence[int]) -> tuple[int, Exception] | None:
        """The first token with which a row cannot be scored, found by bisection."""
        if not tokens:
            return None
        try:
            self._single(self.prompts[0], torch.tensor(tokens, device=self.host.device))
            return None
        except FAULTS as error:
            if len(tokens) == 1:
                return tokens[0], error
        half = len(tokens) // 2
        return self._unreadable(tokens[:half]) or self._unreadable(tokens[half:])

    def _gap(self, name: str, differences: Sequence[Tensor], tolerance: float) -> Gap:
        values = torch.cat([difference.detach().float().abs().flatten() for difference in differences])
        mean, largest = self.host.largest(torch.stack([values.mean(), values.max()])).tolist()
        return Gap(name, mean, largest, tolerance)

    # All of them

    def gaps(self) -> list[Gap]:
        """The lines of the table."""
        text = STOP if self.probes.needs_text else OPTIONAL
        blank = STOP if self.host.needs_blank else OPTIONAL
        takes_text = self.text is not None and self.has_images
        takes_blank = takes_text and self.probes.blank is not None
        steps: list[tuple[Callable[[], Any], str, str, bool]] = [
            (self.kept_outputs, "kept vision outputs", RUN_TOWER, self.has_images and self.host.keeps_outputs),
            (self.scoring, "log-probs, single rows", OWN_HEAD, True),
            (self.sampling, "log-probs, sampled", STOP, True),
            (self.sampled_focus, "focus, sampled", SCORING_PASS, self.has_images),
            (self.sharing, "shared prompts", SEPARATE_ROWS, self.host.share),
            (self.visual_mask, "image tokens", STOP, self.has_images),
            (self.focus, "focus, single rows", STOP, self.has_images),
            (self.text_rows, "text rows, single rows", text, takes_text),
            (self.blank, "text rows, blank image", blank, takes_blank),
            (self.special_tokens, "special tokens", STOP, True),
        ]
        return [gap for step, name, remedy, applies in steps if applies for gap in _measured(step, name, remedy)]


def _measured(step: Callable[[], Any], name: str, remedy: str) -> list[Gap]:
    """The lines of one comparison; an error is a line too."""
    try:
        found = step()
    except torch.OutOfMemoryError:
        raise
    except FAULTS as error:
        return [Gap(name, problem=f"cannot be measured: {_words(error)}", remedy=remedy)]
    return [replace(gap, remedy=remedy) for gap in (found if isinstance(found, list) else [found])]


def _words(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200].rstrip('.')}"


def measure(host: Host, probes: Probes) -> list[Gap]:
    """Compare everything that a host does with a model against plain passes; the model is left unchanged."""
    with undisturbed(host.model):
        return Measurement(host, probes).gaps()


def mask_problem(token_ids: Sequence[int], changed: Tensor, masked: Tensor) -> str:
    """The fault of an image token mask, or an empty text.

    Some image tokens do not change with the pixels: they are learned constants, such as LLaVA-NeXT's token at the end
    of each row of patches. These separators use the same placeholder as the patches. They count as image tokens: they
    are part of the image's block and attend to it.

    Args:
        token_ids: of a prompt of P tokens.
        changed: whether the input of the decoder changes with the pixels, bool (P,).
        masked: whether the token is an image token, bool (P,).
    """
    if not changed.any():
        return "no decoder input changes with the pixels, so that no token represents the image"
    if unmasked := int((changed & ~masked).sum()):
        return f"{unmasked} of {int(changed.sum())} positions that change with the pixels are not image tokens"
    ids = torch.tensor(token_ids)
    foreign = masked & ~changed & ~torch.isin(ids, ids[changed])
    if foreign.any():
        return f"tokens {sorted(set(ids[foreign].tolist()))} count as image tokens and never change with the pixels"
    return ""


def similarities(scores: Scores) -> Tensor:
    """Similarity of the state after each token and of the one that predicts it; (B, T, 2)."""
    assert scores.similarity is not None
    assert scores.predicting_similarity is not None
    return torch.stack([scores.similarity, scores.predicting_similarity], dim=-1)


def states_of_tokens(columns: Tensor) -> Tensor:
    """As `similarities`, from the values at the last prompt token and the response, (..., 1 + T); (..., T, 2)."""
    return torch.stack([columns[..., 1:], columns[..., :-1]], dim=-1)


def norm_and_projection(gradient: Tensor, seed: int) -> Tensor:
    """The norm of a gradient and its product with a random direction, (2,) in float32; of this process's shard."""
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    draw = torch.Generator(local.device).manual_seed(seed)
    direction = torch.randn(local.shape, generator=draw, device=local.device)
    local = local.float()
    return torch.stack([local.norm(), (local * direction).sum()])
