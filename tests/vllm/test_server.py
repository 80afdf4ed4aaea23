"""Training with vLLM's server: started by `vgpo serve`, looked at by `vgpo doctor`, and killed in the middle."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from transformers import TrainerCallback

from tests.vllm import server_plugin
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.serving import server_settings
from vgpo.recipe.setup import Setup
from vgpo.vllm.generation import EngineClient
from vgpo.vllm.prompts import EngineError
from vgpo.vllm.server import ServerSettings, running_server, server_faults

pytestmark = pytest.mark.process
STARTING_SECONDS = 180
IDLE_SECONDS = 7.0  # longer than vLLM keeps a connection that nobody uses


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def address() -> str:
    return free_address()


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the plugin."""
    folder = tmp_path_factory.mktemp("plugin")
    server_plugin.write_plugin(folder)
    return folder


@pytest.fixture(scope="module")
def server(address: str, plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    log = tmp_path_factory.mktemp("server") / "log"
    extra = """--enforce-eager --weight-transfer-config '{"backend": "files"}'"""
    words = ["quickstart_vgpo", "--use_vllm", "true", "--vllm_mode", "server", "--vllm_max_model_length", "512"]
    command = [sys.executable, "-m", "vgpo.cli", "serve", *words, "--vllm_server_base_url", address, "--vllm", extra]
    environment = {**os.environ, "PYTHONPATH": f"{plugin}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for(address, process, log)
        yield process
    finally:
        stop(process)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(STARTING_SECONDS):
        if process.poll() is not None:
            break
        try:
            if requests.get(f"{address}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(1)
    pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.fixture(autouse=True)
def _weights_by_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("init_communicator", "update_named_params"):
        monkeypatch.setattr(EngineClient, name, vars(server_plugin)[name])


@pytest.fixture
def settings(address: str, tmp_path: Path) -> ServerSettings:
    words = ["--use_vllm", "true", "--vllm_mode", "server", "--vllm_server_base_url", address, "--use_cpu", "true"]
    return server_settings(Setup(load_recipe("quickstart_vgpo", words), tmp_path))


def test_three_steps(server: Any, address: str, make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(vllm_mode="server", vllm_server_base_url=address, max_steps=3)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 3
    assert max(line["sampling/sampling_logp_difference/max"] for line in lines) < 0.05
    assert min(line["sampling/importance_sampling_ratio/mean"] for line in lines) > 0.9
    assert [gap.passes for gap in trainer.parity.gaps if gap.name == "log-probs, vLLM"] == [True]


def test_a_connection_that_the_server_closed_is_opened_again(
    server: Any, address: str, make_trainer: Callable[..., Any]
) -> None:
    class Wait(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            time.sleep(IDLE_SECONDS)

    trainer = make_trainer(
        vllm_mode="server", vllm_server_base_url=address, max_steps=3, parity="off", callbacks=[Wait()]
    )
    trainer.train()
    assert trainer.state.global_step == 3


def test_doctor_looks_at_the_server(server: Any, settings: ServerSettings) -> None:
    assert server_faults(settings) == []
    limits = {"size": {"shortest_edge": 784, "longest_edge": 3136}}
    other = replace(settings, model="other", dtype="bfloat16", processor=limits)
    served, computes, options = server_faults(other)
    assert "expected 'other'" in served
    assert "it computes in torch.float32, the policy in bfloat16" in computes
    assert 'its --mm-processor-kwargs are {}, expected {"size": {"shortest_edge": 784' in options


def test_other_pixel_limits_end_the_run(server: Any, address: str, make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(vllm_mode="server", vllm_server_base_url=address, parity="off")
    trainer.processing_class.image_processor.size["longest_edge"] = 3136
    with pytest.raises(EngineError, match="read another prompt than the one that is trained on, in 16 of 16 rows"):
        trainer.train()


def test_a_server_that_is_killed_is_an_error_within_ten_seconds(
    server: subprocess.Popen[bytes], address: str, make_trainer: Callable[..., Any]
) -> None:
    killed: list[float] = []

    class Kill(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            stop(server)
            killed.append(time.monotonic())

    trainer = make_trainer(
        vllm_mode="server", vllm_server_base_url=address, max_steps=3, parity="off", callbacks=[Kill()]
    )
    with pytest.raises(EngineError, match="has stopped answering"):
        trainer.train()
    assert time.monotonic() - killed[0] < 10


def test_a_server_that_a_run_starts_ends_with_it(
    plugin: Path, settings: ServerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{plugin}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # compiles nothing
    own = replace(settings, url=free_address(), transfer="files", max_model_length=512)
    with running_server(own, "", tmp_path / "log", timeout=STARTING_SECONDS):
        assert server_faults(own) == []
    with pytest.raises(EngineError, match="No vLLM server answers"):
        server_faults(own)
    missing = replace(own, model=str(tmp_path / "none"))
    with (
        pytest.raises(EngineError, match=r"ended with status 1 after \d+ s\. Its log, .*log, ends:\n"),
        running_server(missing, "", tmp_path / "log", timeout=STARTING_SECONDS),
    ):
        pytest.fail("it runs")


def test_inspect_answers_with_vllm_as_with_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    texts = []
    for engine in ("vllm", "transformers"):
        words = ["inspect", "toy", "--data", "toy:test", "--rows", "0-3", "--max-new-tokens", "40", "--engine", engine]
        out = tmp_path / engine / "inspection.json"
        subprocess.run([sys.executable, "-m", "vgpo.cli", *words, "--out", str(out)], check=True, capture_output=True)
        questions = json.loads(out.read_text())["questions"]
        texts.append([rollout["text"] for question in questions for rollout in question["rollouts"]])
    assert texts[0] == texts[1]


def test_a_server_that_was_never_there_is_an_error(make_trainer: Callable[..., Any]) -> None:
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"does not answer after 2 s \(ConnectionError\)"):
        make_trainer(vllm_mode="server", vllm_server_base_url="http://127.0.0.1:9", vllm_server_timeout=2)
    assert time.monotonic() - started < 20
