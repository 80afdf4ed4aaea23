"""Log-probabilities and entropy of responses from a model's own logits.

TRL adds a fused head to the models that it trains (`trl.trainer.utils.add_fused_lm_head`), which projects hidden
states itself and scales the logits as the text config says. Not every vision-language model does what its text config
says. The head of this module uses the model's own logits, and keeps those of all responses of a pass in memory.
"""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

TOKENS_AT_ONCE = 1024  # tokens per softmax and entropy computation
LOGITS_TO_KEEP = "logits_to_keep"


@dataclass(frozen=True)
class HeadOutputs:
    """Outputs of a scoring pass; fields as those of TRL's fused head.

    Args:
        log_probs: of each label, 0 without a label; (n, L - 1).
        entropy: of the softmax at each label, in nats; (n, L - 1).
        aux_loss: load-balancing loss of a mixture of experts, or None.
    """

    log_probs: Tensor
    entropy: Tensor
    aux_loss: Tensor | None = None


@contextmanager
def scoring_head(model: PreTrainedModel, temperature: float = 1.0) -> Iterator[None]:
    """`use_own_head` inside the block."""
    before = vars(model).get("forward")
    use_own_head(model, temperature)
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def use_own_head(model: PreTrainedModel, temperature: float = 1.0) -> None:
    """Make `model(..., labels=labels, fused_lm_head=True)` return `HeadOutputs` from the model's own logits.

    Labels (n, L) are token ids, -100 where a token is not scored; each is predicted from the state before it. Calls
    without `fused_lm_head` are unchanged. Replaces a head that TRL has added.

    Args:
        model: a vision-language model, not wrapped.
        temperature: the logits are divided by it, > 0.
    """
    own = model.forward
    keeps_some = LOGITS_TO_KEEP in inspect.signature(type(model).forward).parameters

    @functools.wraps(type(model).forward)
    def forward(*args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return own(*args, **({} if labels is None else {"labels": labels}), **kwargs)
        assert labels is not None
        # The last columns: those with a label, and the one before them.
        scored = (labels != -100).any(0)
        width = labels.shape[1] - int(scored.int().argmax()) + 1 if scored.any() else 2
        kept = {LOGITS_TO_KEEP: width} if keeps_some else {}
        outputs = own(*args, **{**kwargs, **kept, "use_cache": False})
        return head_outputs(outputs.logits[:, -width:], labels, temperature, getattr(outputs, "aux_loss", None))

    model.forward = forward


def head_outputs(logits: Tensor, labels: Tensor, temperature: float, aux_loss: Tensor | None = None) -> HeadOutputs:
    """Score the labels (n, L), -100 for none, with the logits (n, W, V) of the last W columns."""
    targets = labels[:, labels.shape[1] - logits.shape[1] + 1 :]
    mask = targets != -100
    rows, labelled = logits[:, :-1][mask].split(TOKENS_AT_ONCE), targets[mask].split(TOKENS_AT_ONCE)
    parts = [_scores_again(part, chosen, temperature) for part, chosen in zip(rows, labelled, strict=True)]
    log_probs, entropy = (torch.cat(values) for values in zip(*parts, strict=True))
    before = labels.shape[1] - 1 - mask.shape[1]
    mask = F.pad(mask, (before, 0))
    empty = log_probs.new_zeros(mask.shape)
    return HeadOutputs(empty.masked_scatter(mask, log_probs), empty.masked_scatter(mask, entropy), aux_loss)


def _scores_again(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`token_scores`, with the float32 softmax recomputed in the backward pass."""
    return checkpoint(token_scores, logits, targets, temperature, use_reentrant=False)


def token_scores(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its softmax, in nats; (N, V), (N,) -> (N,), (N,) in float32.

    The logits are divided by the temperature.
    """
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    chosen = log_probs.gather(-1, targets[:, None])[:, 0]
    return chosen, torch.special.entr(log_probs.exp()).sum(-1)
