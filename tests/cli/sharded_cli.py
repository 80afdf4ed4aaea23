"""The command line in a process whose CPU counts as an accelerator, which accelerate asks for before it shards."""

import atexit
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType

from vgpo.cli import main

SHARDED = "the model was spread over the processes"
original = state.PartialState.__init__


def start(self: state.PartialState, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def tell() -> None:
    if state.AcceleratorState().is_fsdp2:
        print(SHARDED)  # noqa: T201


if __name__ == "__main__":
    state.PartialState.__init__ = start
    atexit.register(tell)
    main()
