"""A model whose parameters are spread over two processes (FSDP2) shares prompts as a whole one does."""

import pytest
import torch
from torch import Tensor

from tests.processes import run_in_processes
from tests.shared_prompt import sharded_worker


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """What each of the worker's runs gave on the first of two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    run_in_processes(sharded_worker.save_outputs, folder)
    return torch.load(folder / "outputs.pt")


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """Separate rows with the unsharded model."""
    return sharded_worker.run(sharded=False, share=False, checkpointing=False)


@pytest.mark.process
@pytest.mark.parametrize("name", sharded_worker.RUNS)
def test_a_sharded_model_equals_a_whole_one(
    outputs: dict[str, dict[str, Tensor]], expected: dict[str, Tensor], name: str
) -> None:
    actual = outputs[name]
    assert actual.keys() == expected.keys()
    for key in ("log_probs", "similarity"):
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=1e-5, msg=key)
    errors = {
        key: float((actual[key] - value).norm() / value.norm().clamp(min=1e-2)) for key, value in expected.items()
    }
    assert max(errors.values()) <= 1e-4, max(errors, key=errors.__getitem__)
