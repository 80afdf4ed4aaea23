"""Names under which the parts of the verl host find each other."""

from typing import Final

MODEL_TYPE: Final = "vgpo_language_model"
"""The `model_type` under which `vgpo.verl.engine` registers its engine."""
SIMILARITY_FLAG: Final = "measure_visual_similarity"
"""Key of a batch's `extra_info` that asks a log-probability pass for visual similarity."""
SIMILARITY: Final = "visual_similarity"
"""Output of such a pass: cosine with the visual prototype (Eq. 3), float32, one nested row of prompt and response."""
CORRUPTION_FLAG: Final = "corrupt_images"
"""Key of a batch's `extra_info`: the seed of the black patches that a pass sees in its images; None for none."""
CORRUPTED: Final = "corrupted_log_probs"
"""Log-probabilities of such a pass, one nested row of the response."""
SIGNALS: Final = frozenset(
    {"similarity", "predicting_similarity", "entropy", "log_probs", "corrupted_log_probs", "progress"}
)
"""What of `vgpo.shaping.Signals` a run on verl computes."""
