"""Two processes that stop during a generation's updates, and two new ones that resume: the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException
from transformers import AutoModelForImageTextToText

from tests.processes import NUM_PROCESSES, run_in_processes
from tests.trl import resume_worker
from tests.trl.tiny import GROUP, told
from vgpo.checkpoints import weight_hash

STOP = 3  # the rollouts of a generation are trained on in four steps
FSDP2 = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
CASES: dict[str, dict[str, Any]] = {
    "replicated": {},
    "dynamic sampling": {"dynamic_sampling": True},
    "groups across processes": {"per_device_train_batch_size": GROUP // 2},
    "adapters": {"lora": True},
    "sharded": {"fsdp": True, "fsdp_config": FSDP2},
    "blind gate": {
        "per_device_train_batch_size": GROUP // 2,
        "fsdp": True,
        "fsdp_config": FSDP2,
        "shaping": "adaptive",
        "shaping_options": {"blind_gate": True, "earned": False},
    },
    "sharded adapters": {"lora": True, "fsdp": True, "fsdp_config": FSDP2},
}
SAMPLE = ("dynamic sampling", "sharded adapters")  # the others are checked by `make test-all`


def known(folder: Path) -> list[dict[str, Any]]:
    """What each process wrote down."""
    return [json.loads((folder / f"process-{rank}.json").read_text()) for rank in range(NUM_PROCESSES)]


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint that two processes left halfway; the run that they resumed is in the folder above."""
    root = tmp_path_factory.mktemp("whole")

    def run(case: str) -> Path:
        folder = root / case
        if not folder.exists():
            run_in_processes(resume_worker.train, folder, None, CASES[case])
        return folder / f"checkpoint-{STOP}"

    return run


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.process if case in SAMPLE else pytest.mark.slow) for case in CASES],
)
def test_two_processes_go_on_where_two_others_stopped(
    tmp_path: Path, checkpoint_of: Callable[[str], Path], case: str
) -> None:
    checkpoint = checkpoint_of(case)
    run_in_processes(resume_worker.train, tmp_path, checkpoint, CASES[case])
    for expected, actual in zip(known(checkpoint.parent), known(tmp_path), strict=True):
        assert actual["sharded"] == expected["sharded"] == ("fsdp" in CASES[case])
        assert all(actual["parity"].values())
        assert "gradients, shared prompts" in actual["parity"]
        assert actual["weights"] == expected["weights"]
        assert told(actual["log"]) == told(expected["log"])
        assert [line["step"] for line in actual["trained_on"]] == [4, 5, 6]
        for name in ("records", "trained_on"):
            assert actual[name] == [line for line in expected[name] if line["step"] > STOP]


@pytest.mark.process
def test_shards_that_are_not_loaded_are_refused(tmp_path: Path, checkpoint_of: Callable[[str], Path]) -> None:
    with pytest.raises(ProcessRaisedException, match="the trained weights are not those that were saved"):
        run_in_processes(resume_worker.train_without_loading, tmp_path, checkpoint_of("sharded"), CASES["sharded"])


@pytest.mark.process
def test_a_sharded_checkpoint_is_one_of_the_hub_format(checkpoint_of: Callable[[str], Path]) -> None:
    checkpoint = checkpoint_of("sharded")
    model, report = AutoModelForImageTextToText.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    gathered = torch.load(checkpoint / "pytorch_model_fsdp.bin", weights_only=True)
    assert weight_hash(model.state_dict().items()) == weight_hash(gathered.items())


@pytest.mark.process
def test_all_processes_hear_what_the_main_one_fails_with(tmp_path: Path) -> None:
    run_in_processes(resume_worker.fail_on_the_main_process, tmp_path)
    heard = [(tmp_path / f"heard-{rank}").read_text() for rank in range(NUM_PROCESSES)]
    assert heard == ["KeyError('the reason')", "CheckpointError(\"The main process failed: KeyError: 'the reason'\")"]
