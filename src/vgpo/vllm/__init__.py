"""vLLM for a trainer: its inputs, checks of its outputs, and its server."""
