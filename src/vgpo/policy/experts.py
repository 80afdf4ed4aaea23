"""The load-balancing loss of mixtures of experts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from vgpo.policy.probes import FAULTS
from vgpo.policy.undisturbed import undisturbed


def why_no_aux_loss(model: PreTrainedModel, token_id: int) -> str | None:
    """Why TRL's head cannot compute the load-balancing loss of a model, or None if it can.

    The head requests router logits from the base model. Models do not declare whether they return them, so this runs a
    forward pass over two tokens.

    Args:
        model: not wrapped.
        token_id: a text token.
    """
    text = model.config.get_text_config()
    if missing := [name for name in ("num_experts", "num_experts_per_tok") if not hasattr(text, name)]:
        return f"the text config of {type(model).__name__} has no {' and no '.join(missing)}"
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    ids = torch.full((1, 2), token_id, device=model.device)
    name = type(model.base_model).__name__
    with undisturbed(model):
        try:
            output = model.base_model(input_ids=ids, output_router_logits=True, use_cache=False)
        except FAULTS as error:
            return f"{name} does not read text with output_router_logits ({type(error).__name__})"
    return None if output.get("router_logits") else f"{name} returns no router_logits"


@contextmanager
def record_router_logits(model: nn.Module) -> Iterator[list[tuple[Tensor, ...]]]:
    """Record the router logits of a mixture of experts in each pass inside the block.

    Args:
        model: wrapped or not. Its head must not request the logits: it would compute a loss for each pass.

    Yields:
        For each pass, the logits of each layer, (tokens, experts).
    """
    vlm = extract_model_from_parallel(model)
    vlm = vlm.get_base_model() if hasattr(vlm, "get_base_model") else vlm
    passes: list[tuple[Tensor, ...]] = []

    def ask(backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "output_router_logits": True}

    def note(backbone: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        passes.append(tuple(output.router_logits))

    handles = [
        vlm.base_model.register_forward_pre_hook(ask, with_kwargs=True), vlm.base_model.register_forward_hook(note)
    ]  # fmt: skip
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def balancing_loss(text_config: Any, logits: Sequence[tuple[Tensor, ...]], counts: Sequence[Tensor]) -> Tensor:
    """The load-balancing loss over several passes.

    Args:
        text_config: has the number of experts, and of experts per token.
        logits: for each pass, those of each layer, (tokens, experts).
        counts: for each pass, the weight of each token, (tokens,).
    """
    layers = tuple(torch.cat(of_passes) for of_passes in zip(*logits, strict=True))
    weights = torch.cat([count.float() for count in counts])
    return load_balancing_loss_func(layers, text_config.num_experts, text_config.num_experts_per_tok, weights)
