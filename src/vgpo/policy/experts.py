"""The load-balancing loss of mixtures of experts."""

import dataclasses
import inspect
from typing import get_args

from transformers import PreTrainedModel


def why_no_aux_loss(model: PreTrainedModel) -> str | None:
    """Why TRL's head cannot compute the load-balancing loss of a model, or None if it can."""
    text = model.config.get_text_config()
    if missing := [name for name in ("num_experts", "num_experts_per_tok") if not hasattr(text, name)]:
        return f"the text config of {type(model).__name__} has no {' and no '.join(missing)}"
    returned = inspect.get_annotations(inspect.unwrap(type(model.base_model).forward), eval_str=True).get("return")
    outputs = [kind for kind in (returned, *get_args(returned)) if dataclasses.is_dataclass(kind)]
    if outputs and not any(field.name == "router_logits" for kind in outputs for field in dataclasses.fields(kind)):
        return f"{type(model.base_model).__name__} returns no router_logits"
    return None
