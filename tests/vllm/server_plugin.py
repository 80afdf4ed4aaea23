"""Loaded by vLLM's server in the tests: weights come as a file, for NCCL needs GPUs; layers keep theirs as loaded."""

from dataclasses import dataclass
from typing import Any


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
