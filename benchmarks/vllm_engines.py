#!/usr/bin/env python3
"""Whether training ends as well with vLLM as with transformers: the toy recipe on a CPU, for several seeds.

    python benchmarks/vllm_engines.py FOLDER [--seeds 3] [--steps 80]

Runs `quickstart_vgpo` with transformers, with vLLM in the same process and with vLLM's server, each in a process of
its own, and prints a table of accuracies on 500 held-out questions. A run that is done is not made again. Needs vLLM
for CPUs (`KEEP=1 make test-vllm` leaves such an environment) and what tests/vllm does for one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENGINES = ("transformers", "colocate", "server")
URL = "http://127.0.0.1:8123"
LENGTH = 512  # tokens of prompt and response
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
# What tests/vllm does in its processes, before `vgpo train`.
TRAIN = """
import sys
import vllm._custom_ops
from tests.vllm import server_plugin
from vgpo.cli import main
from vgpo.vllm.generation import EngineClient

vllm._custom_ops._supports_onednn = False
EngineClient.init_communicator = server_plugin.init_communicator
EngineClient.update_named_params = server_plugin.update_named_params
sys.argv[0] = "vgpo"
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT, PYTHONPATH=str(ROOT))
    sys.path.insert(0, str(ROOT))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for engine in ENGINES:
        runs = {seed: arguments.folder / f"{engine}-{seed}" for seed in range(arguments.seeds)}
        missing = {seed: run for seed, run in runs.items() if not (run / "finished.json").exists()}
        with server() if engine == "server" and missing else nothing():
            for seed, run in missing.items():
                train(engine, seed, run, arguments.steps)
        print_line(engine, list(runs.values()))


def train(engine: str, seed: int, run: Path, steps: int) -> None:
    words = ["--config", "quickstart_vgpo", "--seed", str(seed), "--run_dir", str(run), "--max_steps", str(steps)]
    if engine != "transformers":
        words += ["--use_vllm", "true", "--vllm_mode", engine, "--vllm_max_model_length", str(LENGTH)]
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if engine == "colocate" else {}
    memory = ["--vllm_gpu_memory_utilization", "0.05"] if engine == "colocate" else []
    address = ["--vllm_server_base_url", URL] if engine == "server" else []
    command = [sys.executable, "-c", TRAIN, "train", *words, *memory, *address]
    with run.with_suffix(".log").open("wb") as log:
        subprocess.run(command, check=True, env={**os.environ, **own}, stdout=log, stderr=log)


def print_line(engine: str, runs: list[Path]) -> None:
    scores = [json.loads((run / "evaluation.json").read_text())["after"] for run in runs]
    cells = [f"{one['accuracy']:.1%} ({one['low']:.1%} to {one['high']:.1%})" for one in scores]
    print(f"| {engine} | {' | '.join(cells)} |", flush=True)


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def server() -> Iterator[None]:
    """vLLM's server with the plugin of the tests, which takes weights from a file."""
    from tests.vllm.server_plugin import write_plugin
    from vgpo.toy import checkpoint_path
    from vgpo.vllm.server import ServerSettings, running_server

    settings = ServerSettings(
        model=str(checkpoint_path()), url=URL, dtype="float32", processor={}, transfer="files", max_model_length=LENGTH
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_plugin(folder)
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"
        with running_server(settings, "", folder / "log", timeout=300):
            yield


if __name__ == "__main__":
    main()
