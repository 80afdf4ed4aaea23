"""Benchmark suites on inspect-ai: tasks, a provider for checkpoints, evaluations that can be resumed, and their page."""
