"""The engine against the transformers model itself, row by row: log-probabilities and visual similarity."""

import inspect
import operator
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.verl.cases import (
    IMAGE_TOKEN,
    TEMPERATURE,
    VIDEO_TOKEN,
    Case,
    Row,
    add_lora,
    build_glm4v,
    build_qwen3_vl,
    make_rows,
)
from tests.verl.cases import token_types as token_types_of
from vgpo.equations import visual_prototype, visual_similarity
from vgpo.toy import checkpoint_path
from vgpo.verl.names import MODEL_TYPE, SIMILARITY

# Measured: 3e-7 and 4e-6 in float32 in every layout; 8e-3 and 1e-1 in bfloat16.
SIMILARITY_ERROR, LOG_PROB_ERROR = 1e-6, 1e-5
SIMILARITY_ERROR_BFLOAT16, LOG_PROB_ERROR_BFLOAT16 = 2e-2, 3e-1
FUSED = {"use_fused_kernels": True, "fused_kernel_options": {"impl_backend": "torch"}}
BFLOAT16 = {"mixed_precision": {"param_dtype": "bf16", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}}
BUCKET = {"pad_to_length": True, "pad_to_length_bucket": 32}
ULYSSES = {"ulysses_sequence_parallel_size": 2}
EXACT = {
    1: {
        "qwen2.5 padded": Case(packed=False, attention="sdpa"),
        "qwen2.5 padded fused": Case(packed=False, attention="sdpa", model_config=FUSED),
        "qwen2.5 packed": Case(),
        "qwen2.5 dynamic": Case(max_tokens=60),
        "qwen2.5 one row each": Case(rows_per_batch=1),
        "qwen2.5 bucket": Case(engine_config=BUCKET),
        "qwen2.5 fused": Case(model_config=FUSED),
        "qwen2.5 lora": Case(model_config={"lora_rank": 4, "lora_adapter_path": "qwen2_5_vl_lora"}),
        "qwen3 padded": Case("qwen3_vl", packed=False, attention="sdpa"),
        "qwen3 packed": Case("qwen3_vl", attention="sdpa"),
        "qwen3 flash": Case("qwen3_vl"),
        "qwen3 dynamic bucket": Case("qwen3_vl", max_tokens=60, engine_config=BUCKET),
        "qwen3 fused": Case("qwen3_vl", model_config=FUSED),
        "qwen3 one row each": Case("qwen3_vl", rows_per_batch=1),
        "glm4v padded": Case("glm4v", packed=False, attention="sdpa"),
        "glm4v padded, one row each": Case("glm4v", packed=False, attention="sdpa", rows_per_batch=1),
        "glm4v packed": Case("glm4v"),
        "qwen3 actor": Case("qwen3_vl", engine_config={"forward_only": False}),
    },
    2: {
        "qwen2.5 padded": Case(packed=False, attention="sdpa"),
        "qwen2.5 packed": Case(),
        "qwen2.5 ulysses": Case(engine_config=ULYSSES),
        "qwen2.5 ulysses bucket": Case(engine_config=ULYSSES | BUCKET),
        "qwen2.5 ulysses fused": Case(engine_config=ULYSSES, model_config=FUSED),
        "qwen2.5 ulysses dynamic": Case(engine_config=ULYSSES, max_tokens=30),
        "qwen3 packed": Case("qwen3_vl", attention="sdpa"),
        "qwen3 ulysses": Case("qwen3_vl", engine_config=ULYSSES),
        "qwen3 ulysses bucket one row": Case("qwen3_vl", engine_config=ULYSSES | BUCKET, rows_per_batch=1),
    },
}
OTHERS = {
    1: {
        "bfloat16": Case("qwen3_vl", attention="sdpa", engine_config=BFLOAT16),
        "flag off": Case(flag=False),
        "stock": Case(flag=False, stock=True),
        "stock without an image": Case(flag=False, stock=True, rows=(2,), rows_per_batch=1),
        "stock glm4v": Case("glm4v", packed=False, attention="sdpa", flag=False, stock=True),
        "actor without an image": Case(flag=False, train=True, rows=(2,), rows_per_batch=1),
        "no prompts": Case(fault="drop_prompts"),
        "padded prompts": Case(fault="pad_prompts"),
        "padded tower": Case(packed=False, attention="sdpa", fault="reads_a_tower"),
        "decoder that never runs": Case(fault="never_runs"),
        "decoder that runs twice": Case(fault="runs_twice"),
        "decoder that is a tower": Case(fault="reads_a_tower"),
        "text-only model": Case(fault="names_no_image_token"),
    },
    2: {
        "ulysses sdpa": Case("qwen3_vl", attention="sdpa", engine_config=ULYSSES),
        "ulysses sdpa, flag off": Case("qwen3_vl", attention="sdpa", engine_config=ULYSSES, flag=False),
    },
}
EXACT_CASES = [(size, name) for size, cases in EXACT.items() for name in cases]

pytestmark = pytest.mark.process


class Lab:
    """Results of all cases, computed once for each number of processes."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText

        self.folder = folder
        self.paths = {name: str(folder / name) for name in ("qwen3_vl", "glm4v")}
        self.paths["qwen2_5_vl"] = str(checkpoint_path())
        self.lora = folder / "qwen2_5_vl_lora"
        build_qwen3_vl(Path(self.paths["qwen3_vl"]))
        build_glm4v(Path(self.paths["glm4v"]))
        add_lora(self.paths["qwen2_5_vl"], self.lora)
        self.models = {
            name: AutoModelForImageTextToText.from_pretrained(path, dtype="float32").eval()
            for name, path in self.paths.items()
        }
        self.rows = {name: make_rows(model) for name, model in self.models.items()}
        jobs = {
            "cases": {size: self._located(EXACT[size] | OTHERS[size]) for size in EXACT},
            "models": self.paths,
            "rows": self.rows,
        }
        torch.save(jobs, folder / "jobs.pt")
        self._results: dict[int, list[dict[str, Any]]] = {}

    def _located(self, cases: dict[str, Case]) -> dict[str, Case]:
        for case in cases.values():
            if "lora_adapter_path" in case.model_config:
                case.model_config["lora_adapter_path"] = str(self.lora)
        return cases

    def result(self, size: int, name: str) -> list[dict[str, Any]]:
        """What each process gave for the case."""
        if size not in self._results:
            self._results[size] = []
            self._results[size] = self._run(size)
        assert self._results[size], f"The {size} processes failed; see the first test that needed them."
        return [results[name] for results in self._results[size]]

    def _run(self, size: int) -> list[dict[str, Any]]:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "VERL_LOGGING_LEVEL": "ERROR", "PYTHONPATH": path}
        command = [sys.executable, "-W", "ignore", "-m", "tests.verl.engine_worker", str(self.folder)]
        with tempfile.TemporaryFile("w+") as log:
            processes = [
                subprocess.Popen([*command, str(rank), str(size)], env=environment, stdout=log, stderr=log)
                for rank in range(size)
            ]
            codes = [process.wait() for process in processes]
            log.seek(0)
            assert not any(codes), log.read()[-5000:]
        return [torch.load(self.folder / f"results_{size}_{rank}.pt", weights_only=False) for rank in range(size)]

    def reference(self, case: Case) -> list[tuple[Tensor, Tensor]]:
        model = self.models[case.model]
        if "lora_adapter_path" not in case.model_config:
            return [reference(model, row) for row in self.rows[case.model]]
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(model, self.lora)
        try:
            return [reference(adapted, row) for row in self.rows[case.model]]
        finally:
            adapted.unload()


@torch.no_grad()
def reference(model: Any, row: Row) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the next tokens (L - 1,) and similarity (L,), from one plain forward pass of one row."""
    input_ids = torch.tensor([row.input_ids])
    images = {} if row.pixel_values is None else {"mm_token_type_ids": token_types_of(input_ids)}
    if row.pixel_values is not None:
        images |= {"pixel_values": row.pixel_values, "image_grid_thw": row.image_grid_thw}
    output = model(input_ids=input_ids, output_hidden_states=True, **images)
    log_probs = torch.log_softmax(output.logits[0, :-1] / TEMPERATURE, dim=-1)
    hidden = output.hidden_states[-1]
    visual = torch.isin(input_ids, torch.tensor([IMAGE_TOKEN, VIDEO_TOKEN]))
    visual[:, len(row.prompt) :] = False
    similarity = visual_similarity(hidden, visual_prototype(hidden, visual))
    return log_probs.gather(1, input_ids[0, 1:, None])[:, 0], similarity[0]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    return Lab(tmp_path_factory.mktemp("engine"))


def errors_of(lab: Lab, size: int, name: str) -> tuple[float, float]:
    """Largest errors of similarity and log-probabilities; every row must be there, in all of its length."""
    case = (EXACT[size] | OTHERS[size])[name]
    expected = lab.reference(case)
    seen: set[int] = set()
    similarity_error = log_prob_error = 0.0
    for result in lab.result(size, name):
        assert "error" not in result, result.get("traceback")
        assert set(result) == {"log_probs", SIMILARITY}
        for row, similarity in result[SIMILARITY].items():
            assert similarity.dtype == torch.float32
            log_probs = result["log_probs"][row][:-1].float()
            similarity_error = max(similarity_error, (similarity - expected[row][1]).abs().max().item())
            log_prob_error = max(log_prob_error, (log_probs - expected[row][0]).abs().max().item())
            seen.add(row)
    assert seen == set(case.rows)
    return similarity_error, log_prob_error


def error_of(lab: Lab, size: int, name: str) -> str:
    """The message of a case that must fail, the same in all processes."""
    (message,) = {result.get("error", f"no error, but {list(result)}") for result in lab.result(size, name)}
    return message


@pytest.mark.parametrize(("size", "name"), EXACT_CASES)
def test_the_engine_agrees_with_the_model(lab, size, name):
    similarity_error, log_prob_error = errors_of(lab, size, name)
    assert similarity_error < SIMILARITY_ERROR
    assert log_prob_error < LOG_PROB_ERROR


def test_bfloat16_costs_what_its_eight_bits_cost(lab):
    similarity_error, log_prob_error = errors_of(lab, 1, "bfloat16")
    assert 1e-4 < similarity_error < SIMILARITY_ERROR_BFLOAT16
    assert 1e-4 < log_prob_error < LOG_PROB_ERROR_BFLOAT16


def test_the_cases_can_tell_right_from_wrong(lab):
    """Neither adapter nor image is without effect, and no row's similarity is one number."""
    plain, adapted = (lab.reference(EXACT[1][name]) for name in ("qwen2.5 packed", "qwen2.5 lora"))
    for row, has_image in enumerate([True, True, False, True]):
        assert (plain[row][0] - adapted[row][0]).abs().max() > 100 * LOG_PROB_ERROR
        for name in lab.models:
            spread = lab.reference(Case(name))[row][1].std().item()
            assert spread > 0.01 if has_image else spread == 0


def test_a_pass_that_does_not_ask_for_similarity_is_verls_own(lab):
    (asked,), (unasked,), (stock,) = (lab.result(1, name) for name in ("qwen2.5 packed", "flag off", "stock"))
    assert set(unasked) == set(stock) == {"log_probs"}
    for row in range(4):
        assert torch.equal(unasked["log_probs"][row], stock["log_probs"][row])
        assert torch.equal(asked["log_probs"][row], stock["log_probs"][row])


@pytest.mark.parametrize(("name", "missing"), [("stock without an image", "mean"), ("stock glm4v", "shape")])
def test_verls_own_engine_still_crashes(lab, name, missing):
    """Once verl reads the vision tower's output as it is, `_return_features_only` can go."""
    assert error_of(lab, 1, name).endswith(f"has no attribute '{missing}'")


def test_an_actor_trains_on_a_micro_batch_without_an_image(lab):
    (result,) = lab.result(1, "actor without an image")
    assert "error" not in result, result.get("traceback")
    assert 0 < result["grad_norm"][2] < float("inf")


@pytest.mark.parametrize(
    ("size", "name", "message"),
    [
        (1, "no prompts", "ValueError: .*nested field 'prompts'.*holds only input_ids, .*responses. Select 'prompts'"),
        (1, "padded prompts", "ValueError: .*nested field 'prompts'.*holds padded 'prompts'. Select"),
        (1, "decoder that never runs", "RuntimeError: The text decoder ran 0 times .*expected once: .*shaping='none'"),
        (1, "decoder that runs twice", "RuntimeError: The text decoder ran 2 times .*expected once: .*shaping='none'"),
        (1, "decoder that is a tower", r"RuntimeError: .*states of \(7, 128\) tokens, expected \(1, 41\), .*Set ulys"),
        (1, "padded tower", r"RuntimeError: .*states of \(7, 128\) tokens, expected \(2, 23\), .*Set ulys"),
        (1, "text-only model", "ValueError: .*model_type 'qwen2'.* names no image token"),
        (2, "ulysses sdpa", "ValueError: Qwen3VLTextModel uses attention 'sdpa' with .*size=2.*'flash_attention_2'"),
        (2, "ulysses sdpa, flag off", "ValueError: Qwen3VLTextModel uses attention 'sdpa' with .*size=2"),
    ],
)
def test_a_wrong_wiring_is_an_error(lab, size, name, message):
    assert re.match(message, error_of(lab, size, name))


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"])
def test_ulysses_runs_with_every_kind_of_flash_attention(engine_module, name):
    engine_module.check_ulysses_attention(decoder_with(name), 2)


@pytest.mark.parametrize("name", ["sdpa", "eager", "flex_attention", None])
def test_ulysses_is_refused_with_any_other_attention(engine_module, name):
    with pytest.raises(ValueError, match=f"Linear uses attention {name!r} with ulysses_sequence_parallel_size=2"):
        engine_module.check_ulysses_attention(decoder_with(name), 2)


def test_ulysses_is_refused_where_nobody_knows_the_attention(engine_module):
    with pytest.raises(ValueError, match="Linear uses attention None"):
        engine_module.check_ulysses_attention(torch.nn.Linear(1, 1), 2)


def decoder_with(attention: str | None) -> torch.nn.Module:
    decoder = torch.nn.Linear(1, 1)
    decoder.config = SimpleNamespace(_attn_implementation=attention)
    return decoder


@pytest.fixture(scope="module")
def engine_module() -> Any:
    import tests.verl.cpu_platform  # noqa: F401 - before verl
    from vgpo.verl import engine

    return engine


def test_verl_finds_the_engine_under_its_model_type_on_cuda_only(engine_module):
    registered = engine_module.EngineRegistry._engines[MODEL_TYPE]
    assert registered == {strategy: {"cuda": engine_module.VGPOEngine} for strategy in ("fsdp", "fsdp2")}


PARAMETERS = {
    "FSDPEngineWithLMHead.__init__": "self, model_config, engine_config, optimizer_config, checkpoint_config",
    "FSDPEngineWithLMHead.initialize": "self",
    "FSDPEngineWithLMHead.forward_step": "self, micro_batch, loss_function, forward_only",
    "FSDPEngineWithLMHead.prepare_model_inputs": "self, micro_batch",
    "FSDPEngineWithLMHead.prepare_model_outputs": "self, output, output_args, micro_batch, logits_processor_func",
    "FSDPEngineWithLMHead._gather_and_unpad_packed": "self, tensor, pad_size",
    "EngineRegistry.register": "model_type, backend, device, vendor",
    "tu.get_non_tensor_data": "data, key, default",
    "monkey_patch.is_trl_available": "",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_verl_has_what_the_engine_overrides_and_calls(engine_module, name):
    found = ", ".join(inspect.signature(operator.attrgetter(name)(engine_module)).parameters)
    assert found == PARAMETERS[name], f"{name}({found}) has changed in verl: adapt src/vgpo/verl/engine.py to it."


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("_build_module", 'self.model_config.model_type == "language_model"'),
        ("_init_device_mesh", "self.use_ulysses_sp = self.ulysses_sequence_parallel_size > 1"),
        ("_init_device_mesh", "self.ulysses_parallel_group ="),
        ("prepare_model_inputs", 'output_args["pad_size"] = static_pad_size + sp_pad_size'),
        ("prepare_model_inputs", "model_inputs, output_args"),
        ("prepare_model_outputs", "input_ids.offsets()"),
        ("forward_step", "self.prepare_model_outputs("),
    ],
)
def test_verl_still_says_what_the_engine_reads(engine_module, method, line):
    source = inspect.getsource(getattr(engine_module.FSDPEngineWithLMHead, method))
    assert line in source, f"{method} of verl no longer holds {line!r}: adapt src/vgpo/verl/engine.py to it."
