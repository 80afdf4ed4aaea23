"""Log-probabilities and entropy of tokens from hidden states, for a model that no trainer has prepared.

TRL adds such a head to the models that it trains (`trl.trainer.utils.add_fused_lm_head`). Evaluation and other hosts
score the same way without TRL.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

TOKENS_AT_ONCE = 1024  # the logits of so many tokens are held together


@dataclass(frozen=True)
class HeadOutputs:
    """Outputs of a scoring pass; fields as those of TRL's fused head.

    Args:
        log_probs: of each label, 0 where there is none; (n, L - 1).
        entropy: of the softmax at each label, in nats; (n, L - 1).
        aux_loss: None.
    """

    log_probs: Tensor
    entropy: Tensor
    aux_loss: None = None


@contextmanager
def scoring_head(model: PreTrainedModel, temperature: float = 1.0) -> Iterator[None]:
    """Inside the block, `model(..., labels=labels, fused_lm_head=True)` returns `HeadOutputs` without all logits.

    Labels (n, L) are token ids, -100 where a token is not scored; each is predicted from the state before it. Calls
    without `fused_lm_head` are the model's own.

    Args:
        model: a vision-language model, not wrapped.
        temperature: the logits are divided by it, > 0.
    """
    own = model.forward

    @functools.wraps(type(model).forward)
    def forward(*args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return own(*args, labels=labels, **kwargs)
        assert labels is not None
        states = model.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        return head_outputs(model, states, labels[:, 1:], temperature)

    model.forward = forward
    try:
        yield
    finally:
        del model.forward


def head_outputs(model: PreTrainedModel, states: Tensor, labels: Tensor, temperature: float) -> HeadOutputs:
    """Score the labels (n, L), -100 where there is none, from the states (n, L, D) that predict them."""
    mask = labels != -100
    scale, cap = logit_scale(model.config), model.config.get_text_config().to_dict().get("final_logit_softcapping")
    head = model.get_output_embeddings()
    parts = [
        token_scores(part, head, targets, temperature=temperature, scale=scale, cap=cap)
        for part, targets in zip(states[mask].split(TOKENS_AT_ONCE), labels[mask].split(TOKENS_AT_ONCE), strict=True)
    ]
    log_probs, entropy = (torch.cat(values) for values in zip(*parts, strict=True))
    empty = log_probs.new_zeros(mask.shape)
    return HeadOutputs(empty.masked_scatter(mask, log_probs), empty.masked_scatter(mask, entropy))


def token_scores(
    states: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    temperature: float,
    scale: float = 1.0,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its softmax, in nats; (N, D), (N,) -> (N,), (N,) in float32.

    Args:
        head: from states to logits.
        temperature: the logits are divided by it, after scale and cap.
        scale: factor on the logits.
        cap: c of c tanh(logit / c), or None.
    """
    logits = head(states).float() * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    chosen = log_probs.gather(-1, targets[:, None])[:, 0]
    return chosen, torch.special.entr(log_probs.exp()).sum(-1)


def logit_scale(config: PretrainedConfig) -> float:
    """The factor on the logits that a text decoder's config names; 1 for the most."""
    text = config.get_text_config().to_dict()
    factors = [text.get(name) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")]
    factor = next((value for value in factors if value is not None), None)
    if factor is None and text.get("logits_scaling") is not None:
        return 1 / text["logits_scaling"]
    return 1.0 if factor is None else factor
