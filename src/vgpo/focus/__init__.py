"""Measure a model's visual focus: which prompt tokens are visual, and how similar each response token is to them."""

from vgpo.focus.ragged import ragged_similarity
from vgpo.focus.recorder import (
    ALL_LAYERS,
    PROTOTYPE,
    Measure,
    Recording,
    SimilarityRecorder,
    decoder_of,
    last_hidden_state,
    layers_of,
    record_similarity,
    record_summaries,
)
from vgpo.focus.statistics import focus_statistics
from vgpo.focus.visual_tokens import (
    banned_token_ids,
    named_visual_token_ids,
    visual_token_ids,
    visual_token_mask,
)

__all__ = [
    "ALL_LAYERS",
    "PROTOTYPE",
    "Measure",
    "Recording",
    "SimilarityRecorder",
    "banned_token_ids",
    "decoder_of",
    "focus_statistics",
    "last_hidden_state",
    "layers_of",
    "named_visual_token_ids",
    "ragged_similarity",
    "record_similarity",
    "record_summaries",
    "visual_token_ids",
    "visual_token_mask",
]
