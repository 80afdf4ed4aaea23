"""vLLM's server for training: its command, and checks of a running one."""

import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from vgpo.vllm.prompts import EngineError

# Without it there are no endpoints for weights and caches, nor for what the server is.
DEVELOPMENT_MODE = {"VLLM_SERVER_DEV_MODE": "1"}
LOGPROBS_MODE = "processed_logprobs"
SECONDS = 5.0
STOPPING_SECONDS = 10.0
PR_SET_PDEATHSIG = 1


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


@contextmanager
def running_server(settings: ServerSettings, devices: str, log: Path, *, timeout: float) -> Iterator[None]:
    """A server that answers while the block runs, and ends with it, or with this process in any way.

    Args:
        settings: Of the server.
        devices: Of the GPUs that it takes, as CUDA_VISIBLE_DEVICES names them; "" for a CPU.
        log: Where its output goes.
        timeout: Seconds until it must answer.

    Raises:
        EngineError: It cannot be started, or ends, or does not answer in time; with the end of its log.
    """
    environment = {**os.environ, **DEVELOPMENT_MODE, "CUDA_VISIBLE_DEVICES": devices}
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [program(), *settings.command()[1:]], env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        except OSError as error:
            raise EngineError(f"vllm cannot be started ({error.strerror}): pip install 'trl[vllm]'") from error
    try:
        _wait_for(settings.url, process, log, timeout)
        yield
    finally:
        _stop(process)


def program() -> str:
    """The path of `vllm`, on PATH or beside the interpreter, as in an environment that is not activated.

    Raises:
        EngineError: It is not installed.
    """
    found = shutil.which("vllm") or shutil.which("vllm", path=str(Path(sys.executable).parent))
    if found is None:
        raise EngineError(
            "vllm is not installed here: pip install 'trl[vllm]'. Or start the server elsewhere, by the command that "
            "`vgpo serve RECIPE --print` shows"
        )
    return found


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
    start = time.monotonic()
    while process.poll() is None and time.monotonic() - start < timeout:
        try:
            _answer(url, "v1/models")
        except EngineError:
            time.sleep(1)
        else:
            return
    how = "does not answer" if process.poll() is None else f"ended with status {process.returncode}"
    last = log.read_text(errors="replace")[-2000:]
    raise EngineError(
        f"The vLLM server at {url} {how} after {time.monotonic() - start:.0f} s. Its log, {log}, ends:\n{last}"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOPPING_SECONDS)


def _end_with_parent() -> None:
    """Let Linux end the server when the trainer is gone, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


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
