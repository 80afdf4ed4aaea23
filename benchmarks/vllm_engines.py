#!/usr/bin/env python3
"""Whether training ends as well with vLLM as with transformers: the embedded recipe on a CPU, for several seeds.

    python benchmarks/vllm_engines.py FOLDER [--seeds 3] [--steps 80]

Runs `quickstart_vgpo` with transformers, with vLLM in the same process and with vLLM's server, each in a process of
its own, and prints a table of accuracies on 500 held-out questions. A run that is done is not made again. Needs vLLM
for CPUs (`KEEP=1 make test-vllm` leaves such an environment) and what tests/vllm does for one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
import os, sys, tempfile
from safetensors.torch import save_file
import vllm._custom_ops
from vgpo.cli import main
from vgpo.vllm.generation import EngineClient

def init(self, device=0):
    self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": {}})

def update(self, metadata, named_params):
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        save_file({name: weight.detach().contiguous().clone() for name, weight in named_params}, file.name)
        self._start_weight_update()
        self._post(f"{self.base_url}/update_weights", json={"update_info": {"path": file.name}})
        self._finish_weight_update()

vllm._custom_ops._supports_onednn = False
EngineClient.init_communicator, EngineClient.update_named_params = init, update
sys.argv[0] = "vgpo"
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
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
    import vllm

    from vgpo.toy import checkpoint_path
    from vgpo.vllm.server import ServerSettings, running_server

    settings = ServerSettings(model=str(checkpoint_path()), url=URL, dtype="float32", processor={}, transfer="files")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy(ROOT / "tests" / "vllm" / "server_plugin.py", folder / "vgpo_server_plugin.py")
        for name, version in (("vgpo_server_plugin", "0.0"), ("vllm", f"{vllm.__version__}+cpu")):
            metadata = folder / f"{name}-{version}.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        entry = folder / "vgpo_server_plugin-0.0.dist-info" / "entry_points.txt"
        entry.write_text("[vllm.general_plugins]\nvgpo = vgpo_server_plugin:register\n")
        os.environ["PYTHONPATH"] = str(folder)
        with running_server(replace(settings, max_model_length=LENGTH), "", folder / "log", timeout=300):
            yield


if __name__ == "__main__":
    main()
