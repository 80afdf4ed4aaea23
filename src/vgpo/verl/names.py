"""Names under which the parts of the verl host find each other."""

from typing import Final

MODEL_TYPE: Final = "vgpo_language_model"
"""The `model_type` under which `vgpo.verl.engine` registers its engine."""
SIMILARITY_FLAG: Final = "measure_visual_similarity"
"""Key of a batch's `extra_info` that asks a log-probability pass for visual similarity."""
SIMILARITY: Final = "visual_similarity"
"""Output of such a pass: cosine with the visual prototype (Eq. 3), float32, one nested row of prompt and response."""
SIGNALS: Final = frozenset({"similarity", "entropy", "log_probs", "progress"})
"""What of `vgpo.shaping.Signals` a run on verl computes."""
