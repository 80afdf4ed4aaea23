"""vLLM's server as a training needs it: its command, and what a running one says of itself."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from vgpo.vllm.prompts import EngineError

# Without it there are no endpoints for weights and caches, nor for what the server is.
DEVELOPMENT_MODE = {"VLLM_SERVER_DEV_MODE": "1"}
LOGPROBS_MODE = "processed_logprobs"
SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server is started with.

    Attributes:
        model: Folder or hub name of the checkpoint.
        url: Where the trainer looks for it, as http://HOST:PORT.
        dtype: In which it computes.
        revision: Of the checkpoint on the hub; None for its newest.
        processor: Options of its processor, see `vgpo.vllm.prompts.processor_options`.
        max_model_length: Tokens of prompt and response; None for the checkpoint's own.
        tensor_parallel_size: GPUs that share the model.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        transfer: How weights come from the trainer; `nccl` needs GPUs on both sides.
    """

    model: str
    url: str
    dtype: str
    revision: str | None = None
    processor: Mapping[str, Any]
    max_model_length: int | None = None
    tensor_parallel_size: int = 1
    trust_remote_code: bool = False
    transfer: str = "nccl"

    def command(self, extra: Sequence[str] = ()) -> list[str]:
        """The words that start the server; the last of two values of an option counts, so `extra` overrides."""
        address = urlsplit(self.url)
        words = [
            "vllm",
            "serve",
            self.model,
            "--host",
            address.hostname or "0.0.0.0",
            "--port",
            str(address.port or 80),
        ]
        words += ["--dtype", self.dtype, "--logprobs-mode", LOGPROBS_MODE, "--max-logprobs", "-1"]
        # Tokens in and out, and weights from the trainer.
        words += ["--enable-scale-out", "--weight-transfer-config", json.dumps({"backend": self.transfer})]
        words += ["--tensor-parallel-size", str(self.tensor_parallel_size)]
        words += ["--mm-processor-kwargs", json.dumps(self.processor)] if self.processor else []
        words += ["--max-model-len", str(self.max_model_length)] if self.max_model_length else []
        words += ["--revision", self.revision] if self.revision else []
        words += ["--trust-remote-code"] if self.trust_remote_code else []
        return [*words, *extra]


def as_shell(command: Sequence[str]) -> str:
    """The command as a shell takes it, with the variables that it needs."""
    return " ".join([*(f"{name}={value}" for name, value in DEVELOPMENT_MODE.items()), shlex.join(command)])


def server_faults(settings: ServerSettings) -> list[str]:
    """What is wrong with the server that runs at `settings.url`, a sentence each; its own words where it has some.

    Raises:
        EngineError: No server answers there.
    """
    served = [model["root"] for model in _answer(settings.url, "v1/models")["data"]]
    faults = [] if settings.model in served else [f"it serves {served}, expected {settings.model!r}"]
    try:
        config = _answer(settings.url, "server_info?config_format=json")["vllm_config"]
    except EngineError:
        return [*faults, "it was started without VLLM_SERVER_DEV_MODE=1, which weight updates need"]
    model = config["model_config"]
    if config.get("weight_transfer_config") is None:
        faults.append("it was started without --weight-transfer-config, so it cannot get new weights")
    if model["logprobs_mode"] != LOGPROBS_MODE:
        faults.append(f"its --logprobs-mode is {model['logprobs_mode']}, expected {LOGPROBS_MODE}")
    if str(model["dtype"]).removeprefix("torch.") != settings.dtype:
        faults.append(f"it computes in {model['dtype']}, the policy in {settings.dtype}")
    options = (model.get("multimodal_config") or {}).get("mm_processor_kwargs") or {}
    if dict(options) != dict(settings.processor):
        faults.append(
            f"its --mm-processor-kwargs are {json.dumps(options)}, expected {json.dumps(settings.processor)}"
        )
    return faults


def _answer(url: str, path: str) -> dict[str, Any]:
    if urlsplit(url).scheme not in ("http", "https"):
        raise EngineError(f"vllm_server_base_url is {url!r}, expected http://HOST:PORT")
    try:
        with urlopen(f"{url.rstrip('/')}/{path}", timeout=SECONDS) as answer:  # the scheme is checked
            return json.load(answer)
    except HTTPError as error:
        raise EngineError(f"The vLLM server at {url} answers {error.code} to /{path}.") from error
    except (URLError, OSError, ValueError) as error:
        raise EngineError(f"No vLLM server answers at {url} ({error}). Start it with `vgpo serve RECIPE`.") from error
