"""Record visual similarity in a forward pass that is run anyway.

A forward hook on the text decoder reduces the hidden states after its final norm to one cosine per token: no tensor of
hidden size outlives the hook, and no other layer is kept. The tokens are the last one of the prompt and those of the
response: the state at each predicts the next one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vgpo.equations import mean_visual_cosine, mean_visual_direction, visual_prototype, visual_similarity


@dataclass(frozen=True)
class Measure:
    """A similarity of response tokens to the visual tokens of their prompt.

    Args:
        summary: of the visual tokens; hidden states (n, P, D) and their mask, bool (n, P), to (n, D).
        cosine: of tokens with that summary; (n, T, D), (n, D) -> (n, T).
        all_layers: whether to average over all layers, or to use only the last one.
    """

    summary: Callable[[Tensor, Tensor], Tensor]
    cosine: Callable[[Tensor, Tensor], Tensor]
    all_layers: bool = False


PROTOTYPE = Measure(visual_prototype, visual_similarity)  # Eq. 3
ALL_LAYERS = Measure(mean_visual_direction, mean_visual_cosine, all_layers=True)  # VS of arXiv 2603.22847


class SimilarityRecorder:
    """Collects the cosines of the rows that pass through the decoder, in order.

    The rows may come in several forward passes, one chunk after the other.

    Args:
        measure: what is computed.
        num_rows: expected number of rows, B.
        visual_mask: bool (B, P), the visual tokens of each prompt, if a row is its prompt (P columns, including
        padding) and its response.
        summary: (B, D) of the prompts, if a row is the last token of its prompt and its response.
    """

    def __init__(
        self, measure: Measure, num_rows: int, visual_mask: Tensor | None = None, summary: Tensor | None = None
    ) -> None:
        self.measure = measure
        self.num_rows = num_rows
        self.visual_mask = visual_mask
        self.summary = summary
        self._chunks: list[Tensor] = []
        self._seen = 0

    @property
    def columns(self) -> Tensor:
        """Cosines with the visual tokens of the prompt, in [-1, 1]: its last token, then the response; (B, 1 + T)."""
        if self._seen != self.num_rows:
            raise RuntimeError(
                f"The decoder ran on {self._seen} of {self.num_rows} rows while their focus was recorded. "
                "Run the forward pass of every row inside record_similarity()."
            )
        return torch.cat(self._chunks)

    # Compiled decoders must not trace a Python list that grows.
    @torch.compiler.disable
    @torch.no_grad()
    def observe(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the decoder or of one of its layers."""
        del decoder, args
        hidden = last_hidden_state(output)  # (b, L, D), b rows of this chunk
        rows = slice(self._seen, self._seen + len(hidden))
        self._seen += len(hidden)
        if self._seen > self.num_rows:
            raise RuntimeError(
                f"The decoder ran on more rows than the {self.num_rows} whose visual tokens are known. "
                "Use one record_similarity() for each batch."
            )
        if self.visual_mask is None:
            assert self.summary is not None
            self._chunks.append(self.measure.cosine(hidden, self.summary[rows]))
            return
        mask = self.visual_mask[rows]
        prompt = mask.shape[1]
        summary = self.measure.summary(hidden[:, :prompt], mask)
        # Products over different numbers of tokens round differently: this keeps the response independent of the
        # prompt.
        parts = (hidden[:, prompt - 1 : prompt], hidden[:, prompt:])
        self._chunks.append(torch.cat([self.measure.cosine(part, summary) for part in parts], dim=1))


class Recording:
    """The recorded values of `record_similarity`, available after the passes."""

    def __init__(self, recorders: Sequence[SimilarityRecorder]) -> None:
        self.recorders = recorders

    @cached_property
    def columns(self) -> Tensor:
        """As in `SimilarityRecorder`, averaged over the layers of the measure; (B, 1 + T)."""
        return torch.stack([recorder.columns for recorder in self.recorders]).mean(0)

    @property
    def similarity(self) -> Tensor:
        """Cosine of the state after reading each response token with the prompt's visual tokens; (B, T)."""
        return self.columns[:, 1:]

    @property
    def predicting_similarity(self) -> Tensor:
        """The same for the state that predicts each response token, that of the token before it; (B, T)."""
        return self.columns[:, :-1]


@contextmanager
def record_similarity(
    model: nn.Module,
    visual_mask: Tensor | None = None,
    measure: Measure = PROTOTYPE,
    summaries: Sequence[Tensor] = (),
) -> Iterator[Recording]:
    """Record the visual similarity of every response token that `model` reads inside the block (Eq. 3).

    Works with any forward of any transformers VLM: wrapped by PEFT, DDP, FSDP or torch.compile, under autocast and
    gradient checkpointing, with or without gradients.

    Args:
        model: the VLM, wrapped or not.
        visual_mask: bool (B, P), see `SimilarityRecorder`.
        measure: what is computed.
        summaries: instead of a mask, the result of `record_summaries`, (B, D) for each layer of the measure.

    Raises:
        ValueError: if the model has no text decoder that returns hidden states, or no list of its layers.
    """
    modules = _measured_modules(model, measure)
    if visual_mask is None:
        recorders = [SimilarityRecorder(measure, len(summary), summary=summary) for summary in summaries]
    else:
        recorders = [SimilarityRecorder(measure, len(visual_mask), visual_mask) for _ in modules]
    handles = [
        module.register_forward_hook(recorder.observe) for module, recorder in zip(modules, recorders, strict=True)
    ]
    try:
        yield Recording(recorders)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record_summaries(model: nn.Module, visual_mask: Tensor, measure: Measure) -> Iterator[Callable[[], Tensor]]:
    """Record a summary of the visual tokens in a pass over prompts only.

    Args:
        model: the VLM, wrapped or not.
        visual_mask: bool (n, P), the visual tokens.
        measure: the measure that later passes over responses will compute.

    Returns:
        A function that returns the summaries after the pass, (layers, n, D).
    """
    found: list[Tensor] = []

    @torch.compiler.disable
    @torch.no_grad()
    def observe(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found.append(measure.summary(last_hidden_state(output), visual_mask))

    handles = [module.register_forward_hook(observe) for module in _measured_modules(model, measure)]
    try:
        yield lambda: torch.stack(found)
    finally:
        for handle in handles:
            handle.remove()


def _measured_modules(model: nn.Module, measure: Measure) -> list[nn.Module]:
    """The modules whose outputs are the layers of a measure, in forward order."""
    decoder = decoder_of(model)
    # The states of the last layer are those after the final norm, as returned by the decoder.
    return [*layers_of(decoder)[:-1], decoder] if measure.all_layers else [decoder]


def layers_of(decoder: nn.Module) -> list[nn.Module]:
    """The layers of a text decoder, in order.

    Raises:
        ValueError: if the decoder does not list them.
    """
    layers = dict(decoder.named_children()).get("layers")
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"{type(decoder).__name__} has no list of modules named 'layers', so there are no hidden states to read "
            "layer by layer. Choose a shaping that reads the last layer only, such as 'vgpo'."
        )
    return list(layers)


def decoder_of(model: nn.Module) -> nn.Module:
    """The text decoder of a VLM, inside any wrappers.

    Raises:
        ValueError: if the model does not declare it.
    """
    from accelerate.utils import extract_model_from_parallel  # `import vgpo.focus` needs torch only

    unwrapped = extract_model_from_parallel(model)
    try:
        decoder = unwrapped.get_decoder()
    except AttributeError as error:
        raise ValueError(
            f"{type(unwrapped).__name__} has no get_decoder(), so there are no hidden states to read visual focus "
            "from. Use a vision-language model of transformers, or give the class a get_decoder() that returns "
            "its text decoder."
        ) from error
    if decoder is None or decoder is unwrapped:
        raise ValueError(
            f"get_decoder() of {type(unwrapped).__name__} names no module below the model: there is no text decoder "
            "to read visual focus from. Use a vision-language model, or override get_decoder()."
        )
    # Llama 4 returns its text model with the head; the decoder is inside.
    inner = getattr(decoder, "base_model", decoder)
    return inner if getattr(decoder, "lm_head", None) is not None else decoder


def last_hidden_state(output: Any) -> Tensor:
    """Hidden states (B, L, D) from the output of a decoder, after the final norm, or of a layer."""
    if isinstance(output, Tensor):
        return output
    hidden = output[0] if isinstance(output, tuple) else output.get("last_hidden_state")
    if hidden is None:
        raise ValueError(
            f"The decoder returned {type(output).__name__} without last_hidden_state. get_decoder() must return the "
            "bare text decoder, not a model with a language-modelling head."
        )
    return hidden
