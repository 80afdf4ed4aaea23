"""vLLM beside a trainer: what it is given, what it must give back, and how it is started."""
