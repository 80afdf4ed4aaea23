"""Benchmark suites on inspect-ai: tasks, a provider of checkpoints, evaluations that can be resumed, their page."""
