"""The benchmarks of the paper on one checkpoint: tasks, evaluation folder, page."""
