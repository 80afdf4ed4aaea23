"""verl on a machine without an accelerator: the CPU, gloo and fsdp2. Import this module before verl.

verl looks for a platform once per process. The environment variables set here make every process that this one
starts, Ray's included, load this module while it imports verl. Ray hands out "GPU"s: start it with as many as there
are workers.
"""

import os
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.distributed
from torch.distributed.fsdp import CPUOffloadPolicy

os.environ["VERL_PLATFORM"] = "cpu"
os.environ["VERL_USE_EXTERNAL_MODULES"] = __name__
os.environ["VERL_ENGINE_DEVICE"] = "cuda"  # the engines are those registered for CUDA
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


@PlatformRegistry.register("cpu")
class CPUPlatform(PlatformBase):
    device_name = "cpu"
    vendor_name = "cpu"
    device_module: ModuleType = torch.cpu

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # chosen by name only

    def current_device(self) -> torch.device:  # verl moves tensors to it: an index would mean CUDA
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


def _no_memory(device: Any = None) -> int:
    return 0


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _complete_torch_cpu() -> None:
    """Functions of `torch.cuda` that verl calls on every device module."""
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(torch.cpu, name, _no_memory)
    for name in ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "reset_max_memory_allocated"):
        setattr(torch.cpu, name, _nothing)
    torch.cpu.get_device_name = lambda device=None: "CPU"
    torch.cpu.get_rng_state, torch.cpu.set_rng_state = torch.get_rng_state, torch.set_rng_state


def _name_gloo_once() -> None:
    """verl asks for "cpu:gloo,<device>:<backend>", and torch refuses a device that is named twice."""
    start = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        start("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group


def _do_not_pin_memory() -> None:
    """verl's reference worker pins its parameters, which needs a driver."""

    def init(self: CPUOffloadPolicy, pin_memory: bool = False) -> None:
        object.__setattr__(self, "pin_memory", False)

    CPUOffloadPolicy.__init__ = init


_complete_torch_cpu()
_name_gloo_once()
_do_not_pin_memory()
