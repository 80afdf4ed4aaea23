"""How much a token depends on the pictures: what its probability loses without them."""

import torch
from torch import Tensor

MOST_LOG_RATIO = 20.0
MOST_DEPENDENCY = 10.0


@torch.no_grad()
def token_dependency(log_probs: Tensor, damaged_log_probs: Tensor, judged: Tensor) -> Tensor:
    """The k3 estimate of KL(pi(. | picture) || pi(. | damaged picture)) at the token that was sampled.

    d = clip(log pi(y | damaged) - log pi(y | picture), -20, 20) and s = exp(d) - d - 1, at most 10. It is what
    VPPO (arXiv 2510.09285, Eq. 3) and PGPO (arXiv 2604.01840) take for the divergence.

    (B, T), (B, T), bool (B, T) -> (B, T) in [0, 10], float32 or better; 0 where a token is not judged.
    """
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    ratio = torch.where(judged, damaged_log_probs.to(dtype) - log_probs.to(dtype), 0)
    ratio = ratio.clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO)
    # exp(d) - 1 by itself would round small dependencies away.
    return (ratio.expm1() - ratio).clamp(0, MOST_DEPENDENCY)
