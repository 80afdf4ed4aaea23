"""The load-balancing loss of mixtures of experts."""

import torch
from transformers import PreTrainedModel

from vgpo.policy.probes import FAULTS
from vgpo.policy.undisturbed import undisturbed


def why_no_aux_loss(model: PreTrainedModel, token_id: int) -> str | None:
    """Why TRL's head cannot compute the load-balancing loss of a model, or None if it can.

    The head asks the model without its head for the logits of the routers. What a model returns is not declared, so
    that it reads two tokens here.

    Args:
        model: not wrapped.
        token_id: a token of text.
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
