"""One process of a group that runs cases through verl's engine: `python -m tests.verl.engine_worker FOLDER RANK SIZE`.

Reads `jobs.pt` from the folder, and writes what each case gave to `results_SIZE_RANK.pt`.
"""

import tests.verl.cpu_platform  # isort: skip  # noqa: F401 - before verl

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import transformers.integrations.flash_attention
from transformers.models.glm4v import modeling_glm4v
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen3_vl import modeling_qwen3_vl
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry

from tests.verl import flash_attention
from tests.verl.cases import FLOAT32, TEMPERATURE, Case, Row
from vgpo.verl import engine as vgpo_engine
from vgpo.verl.names import MODEL_TYPE, SIMILARITY_FLAG


def main(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store_{size}", rank=rank, world_size=size
    )
    flash_attention.install()
    jobs = torch.load(folder / "jobs.pt", weights_only=False)
    results = {name: run(case, jobs) for name, case in jobs["cases"][size].items()}
    torch.save(results, folder / f"results_{size}_{rank}.pt")
    torch.distributed.destroy_process_group()


def run(case: Case, jobs: dict[str, Any]) -> dict[str, Any]:
    """The outputs of the case's pass by key, one tensor per row that this process holds, or its `error`."""
    rows = own_rows(case)
    try:
        with unpatched():
            engine = build(case, jobs["models"][case.model])
            data = batch(engine, case, [jobs["rows"][case.model][i] for i in rows])
            FAULTS[case.fault](engine, data)
            with nothing_left_behind(engine):
                outputs = train(engine, data) if case.train else infer(engine, data)
        return {key: dict(zip(rows, list(value.unbind()), strict=True)) for key, value in outputs.items()}
    except Exception as error:  # noqa: BLE001 - the test reads it
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def own_rows(case: Case) -> list[int]:
    """Data parallelism deals the rows out; all processes of a Ulysses group hold the same."""
    parallel = case.engine_config.get("ulysses_sequence_parallel_size", 1)
    group, size = torch.distributed.get_rank() // parallel, torch.distributed.get_world_size() // parallel
    return list(case.rows[group::size])


@contextmanager
def unpatched() -> Iterator[None]:
    """verl replaces methods of transformers' classes; the next case starts with the original ones."""
    modules = (modeling_glm4v, modeling_qwen2_5_vl, modeling_qwen3_vl)
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    forwards = {cls: cls.forward for cls in classes if "forward" in vars(cls)}
    attention = transformers.integrations.flash_attention._flash_attention_forward
    try:
        yield
    finally:
        for cls, forward in forwards.items():
            cls.forward = forward
        transformers.integrations.flash_attention._flash_attention_forward = attention


def build(case: Case, path: str) -> Any:
    model_type = "language_model" if case.stock else MODEL_TYPE
    model_config = HFModelConfig(
        path=path,
        load_tokenizer=False,
        model_type=model_type,
        use_remove_padding=case.packed,
        override_config={"attn_implementation": case.attention},
        **case.model_config,
    )
    settings = {
        "forward_only": not case.train,
        "mixed_precision": FLOAT32,
        "use_torch_compile": False,
    } | case.engine_config
    if case.stock:
        vgpo_engine._leave_trl_alone()
    engine = EngineRegistry.new(
        model_type=model_type,
        backend="fsdp2",
        model_config=model_config,
        engine_config=FSDPEngineConfig(strategy="fsdp2", **settings),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3),
        checkpoint_config=None,
    )
    engine.initialize()
    return engine


@contextmanager
def nothing_left_behind(engine: Any) -> Iterator[None]:
    """No hook and no states, whether the pass succeeds or not."""
    decoder = getattr(engine, "_decoder", engine.module)
    hooks = len(decoder._forward_hooks)
    try:
        yield
    finally:
        assert len(decoder._forward_hooks) == hooks
        assert getattr(engine, "_hidden", None) is None


def infer(engine: Any, data: Any) -> dict[str, torch.Tensor]:
    with engine.eval_mode():
        return engine.infer_batch(data)["model_output"]


def train(engine: Any, data: Any) -> dict[str, torch.Tensor]:
    def loss(model_output: dict[str, torch.Tensor], **context: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        return -model_output["log_probs"].values().mean(), {}

    with engine.train_mode():
        metrics = engine.train_batch(data, loss)["metrics"]
    return {"grad_norm": torch.tensor([metrics["grad_norm"]])}


def batch(engine: Any, case: Case, rows: list[Row]) -> Any:
    data = tu.get_tensordict(
        {
            "input_ids": nested([torch.tensor(row.input_ids) for row in rows]),
            "position_ids": nested([row.position_ids for row in rows], ragged_axis=2),
            "prompts": nested([torch.tensor(row.prompt) for row in rows]),
            "responses": nested([torch.tensor(row.response) for row in rows]),
            "loss_mask": nested([torch.ones(len(row.response)) for row in rows]),
            "multi_modal_inputs": [images_of(row) for row in rows],
        },
        {
            "temperature": TEMPERATURE,
            "use_remove_padding": case.packed,
            "use_fused_kernels": engine.model_config.use_fused_kernels,
            "calculate_entropy": False,
            "use_dynamic_bsz": case.max_tokens is not None,
            "max_token_len_per_gpu": case.max_tokens,
            "micro_batch_size_per_gpu": case.rows_per_batch,
        },
    )
    if case.flag:
        tu.assign_non_tensor(data, **{SIMILARITY_FLAG: True})
    return data


def nested(tensors: list[torch.Tensor], ragged_axis: int = 1) -> torch.Tensor:
    return tu.nested_tensor_from_tensor_list(tensors, ragged_idx=ragged_axis)


def images_of(row: Row) -> dict[str, Any]:
    if row.pixel_values is None:
        return {}
    return {"pixel_values": row.pixel_values, "image_grid_thw": row.image_grid_thw}


def _none(engine: Any, data: Any) -> None:
    pass


def _drop_prompts(engine: Any, data: Any) -> None:
    del data["prompts"]


def _pad_prompts(engine: Any, data: Any) -> None:
    data["prompts"] = data["prompts"].to_padded_tensor(0)


def _never_runs(engine: Any, data: Any) -> None:
    engine._decoder = torch.nn.Identity()


def _runs_twice(engine: Any, data: Any) -> None:
    run = engine.module.forward
    engine.module.forward = lambda **inputs: (run(**inputs), run(**inputs))[1]


def _reads_a_tower(engine: Any, data: Any) -> None:
    engine._decoder = engine.module.model.visual


def _names_no_image_token(engine: Any, data: Any) -> None:
    engine.model_config.hf_config = transformers.Qwen2Config()


FAULTS = {
    "": _none,
    "drop_prompts": _drop_prompts,
    "pad_prompts": _pad_prompts,
    "never_runs": _never_runs,
    "runs_twice": _runs_twice,
    "reads_a_tower": _reads_a_tower,
    "names_no_image_token": _names_no_image_token,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
