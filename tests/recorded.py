"""When a recorded training can be repeated to the last bit: what decides it, and what differs here."""

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft")


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block PyTorch computes with one thread, as every recording did."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def conditions() -> dict[str, Any]:
    """What decides whether two trainings can be equal to the last bit."""
    from vgpo.run.environment import cpu_name

    return {
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **{package: version(package) for package in PACKAGES},
    }


def changed_conditions(recorded: Mapping[str, Any]) -> str:
    """What is not as it was when something was recorded, empty if all is."""
    here = conditions()
    changes = [f"{name} is {here[name]!r}, recorded {value!r}" for name, value in recorded.items()
               if here[name] != value]  # fmt: skip
    return "; ".join(changes)
