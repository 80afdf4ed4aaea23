"""Visual similarity out of a forward pass that is run anyway.

A forward hook on the text decoder sees the hidden states after its final norm, reduces them to one cosine per
response token and lets them go: nothing of hidden size outlives the hook, and no other layer is kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vgpo.equations import mean_visual_cosine, visual_prototype, visual_similarity

Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


def prototype_cosine(hidden: Tensor, prompt_hidden: Tensor, visual_mask: Tensor) -> Tensor:
    """Cosine of tokens with their row's visual prototype (Eq. 3). (B, T, D), (B, P, D), bool (B, P) -> (B, T)."""
    return visual_similarity(hidden, visual_prototype(prompt_hidden, visual_mask))


class SimilarityRecorder:
    """Collects the cosines of the rows that pass through the decoder, in order.

    The rows of `visual_mask` may come in several forward passes, one chunk after the other.

    Args:
        visual_mask: bool (B, P), the visual tokens of each prompt. The first P positions of every row are its
            prompt (padding included), all later ones its response.
        unpack: for rows that hold several responses each: takes the similarity of all tokens of n rows (n, L) to
            that of response tokens (B, T). `visual_mask` is then (n, L).
        measure: takes hidden states of tokens (n, T, D) and of prompts (n, P, D), and the prompts' visual tokens, bool
            (n, P), to a number per token (n, T).
    """

    def __init__(
        self,
        visual_mask: Tensor,
        unpack: Callable[[Tensor], Tensor] | None = None,
        measure: Measure = prototype_cosine,
    ) -> None:
        self.visual_mask = visual_mask
        self.unpack = unpack
        self.measure = measure
        self._chunks: list[Tensor] = []
        self._num_rows = 0

    @property
    def similarity(self) -> Tensor:
        """Cosine of each response token with its prompt's visual prototype, in [-1, 1]; (B, T)."""
        if self._num_rows != len(self.visual_mask):
            raise RuntimeError(
                f"The decoder saw {self._num_rows} of {len(self.visual_mask)} rows while their focus was recorded. "
                "Run the forward pass of every row inside record_similarity()."
            )
        return torch.cat(self._chunks)

    # Compiled decoders must not trace a Python list that grows.
    @torch.compiler.disable
    @torch.no_grad()
    def observe(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the decoder."""
        del decoder, args
        hidden = last_hidden_state(output)  # (b, P + T, D), b rows of this chunk
        rows = slice(self._num_rows, self._num_rows + len(hidden))
        visual_mask = self.visual_mask[rows]
        if len(visual_mask) != len(hidden):
            raise RuntimeError(
                f"The decoder ran on more rows than the {len(self.visual_mask)} whose visual tokens are known. "
                "Use one record_similarity() for each batch."
            )
        prompt_length = visual_mask.shape[1]
        tokens = hidden[:, prompt_length:] if self.unpack is None else hidden
        similarity = self.measure(tokens, hidden[:, :prompt_length], visual_mask)
        self._chunks.append(similarity if self.unpack is None else self.unpack(similarity))
        self._num_rows += len(hidden)


@contextmanager
def record_similarity(
    model: nn.Module, visual_mask: Tensor, unpack: Callable[[Tensor], Tensor] | None = None
) -> Iterator[SimilarityRecorder]:
    """Record the visual similarity of every response token that `model` reads inside the block (Eq. 3).

    Works around any forward of any transformers VLM: wrapped by PEFT, DDP, FSDP or torch.compile, under autocast
    and gradient checkpointing, with or without gradients.

    Args:
        model: the VLM, wrapped or not.
        visual_mask: bool (B, P), see `SimilarityRecorder`.
        unpack: see `SimilarityRecorder`.

    Raises:
        ValueError: if the model has no text decoder that returns hidden states.
    """
    recorder = SimilarityRecorder(visual_mask, unpack)
    handle = decoder_of(model).register_forward_hook(recorder.observe)
    try:
        yield recorder
    finally:
        handle.remove()


@contextmanager
def record_layer_similarity(
    model: nn.Module, visual_mask: Tensor, unpack: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Callable[[], Tensor]]:
    """As `record_similarity`, in all layers: gives a function that tells the mean over them, (B, T), afterwards.

    Of each layer it takes the mean cosine of a response token with the visual tokens of its prompt (VS of arXiv
    2603.22847).

    Raises:
        ValueError: if the text decoder does not list its layers.
    """
    decoder = decoder_of(model)
    # The last layer's states are those after the final norm, which the decoder returns.
    recorders = [SimilarityRecorder(visual_mask, unpack, mean_visual_cosine) for _ in layers_of(decoder)]
    modules = [*layers_of(decoder)[:-1], decoder]
    handles = [
        module.register_forward_hook(recorder.observe) for module, recorder in zip(modules, recorders, strict=True)
    ]
    try:
        yield lambda: torch.stack([recorder.similarity for recorder in recorders]).mean(0)
    finally:
        for handle in handles:
            handle.remove()


def layers_of(decoder: nn.Module) -> list[nn.Module]:
    """The layers of a text decoder, in order.

    Raises:
        ValueError: if the decoder does not list them.
    """
    layers = dict(decoder.named_children()).get("layers")
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"{type(decoder).__name__} has no list of modules named 'layers', so there are no hidden states to read "
            "layer by layer. Choose a shaping that looks at the last layer only, as 'vgpo'."
        )
    return list(layers)


def decoder_of(model: nn.Module) -> nn.Module:
    """The text decoder inside a VLM, whatever wraps it.

    Raises:
        ValueError: if the model does not say which of its modules that is.
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
    # Llama 4 names its text model with the head; the decoder is inside.
    inner = getattr(decoder, "base_model", decoder)
    return inner if getattr(decoder, "lm_head", None) is not None else decoder


def last_hidden_state(output: Any) -> Tensor:
    """Hidden states after the final norm (B, L, D) out of a decoder's output, or those of a layer out of its."""
    if isinstance(output, Tensor):
        return output
    hidden = output[0] if isinstance(output, tuple) else output.get("last_hidden_state")
    if hidden is None:
        raise ValueError(
            f"The decoder returned {type(output).__name__} without last_hidden_state. get_decoder() must return the "
            "bare text decoder, not a model with a language-modelling head."
        )
    return hidden
