"""Dependency of a token on the images: the loss of its probability without them."""

import torch
from torch import Tensor

MOST_LOG_RATIO = 20.0
MOST_DEPENDENCY = 10.0
LOG_PROB_ROUNDING = 16  # units in the last place by which equal log-probabilities may differ


@torch.no_grad()
def token_dependency(log_probs: Tensor, damaged_log_probs: Tensor, scored_mask: Tensor) -> Tensor:
    """The k3 estimate of KL(pi(. | image) || pi(. | damaged image)) at the token that was sampled.

    d = clip(log pi(y | damaged) - log pi(y | image), -20, 20) and s = exp(d) - d - 1, at most 10. VPPO (arXiv
    2510.09285, Eq. 3) and PGPO (arXiv 2604.01840) use it as the divergence.

    A |d| below the rounding of the log-probabilities, 16 units in the last place of max(|log pi(y | image)|, 1) in
    their own dtype, is 0: scaled to [0, 1] over a response, rounding would become dependency of the full range. Larger
    rounding errors of half-precision models cannot be distinguished from a dependency.

    (B, T), (B, T), bool (B, T) -> (B, T) in [0, 10], float32 or better; 0 where a token is not scored.
    """
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    ratio = damaged_log_probs.to(dtype) - log_probs.to(dtype)
    rounding = LOG_PROB_ROUNDING * torch.finfo(log_probs.dtype).eps * log_probs.to(dtype).abs().clamp(min=1)
    # This form keeps non-finite differences.
    ratio = torch.where(scored_mask & ~(ratio.abs() < rounding), ratio, 0)
    ratio = ratio.clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO)
    # exp(d) - 1 by itself would round small dependencies away.
    return (ratio.expm1() - ratio).clamp(0, MOST_DEPENDENCY)
