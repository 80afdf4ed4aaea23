"""Processes of one gloo group, forked from a server that imports the libraries once for all of them."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed
import torch.multiprocessing

NUM_PROCESSES = 2
PRELOADED = ["vgpo.trl", "trl.trainer.grpo_trainer", "peft", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"]


def run_in_processes(function: Callable[..., None], *args: Any, seconds: int = 120) -> None:
    """Call `function(*args)` in each of `NUM_PROCESSES` new processes.

    Args:
        function: one that a module has, and that asks `torch.distributed` for its rank.
        args: what can be pickled.
        seconds: how long a process waits for another.

    Raises:
        torch.multiprocessing.ProcessRaisedException: one of them failed; holds its traceback.
        torch.multiprocessing.ProcessExitedException: one of them ended without a traceback.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # read when the server starts
        torch.multiprocessing.start_processes(
            _in_group, (folder, seconds, function, args), NUM_PROCESSES, start_method="forkserver"
        )


def _in_group(rank: int, folder: str, seconds: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": NUM_PROCESSES, "LOCAL_WORLD_SIZE": NUM_PROCESSES}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=NUM_PROCESSES,
        timeout=timedelta(seconds=seconds),
    )
    function(*args)
    torch.distributed.destroy_process_group()
