"""A few training steps give exactly the numbers and weights that were recorded.

A recording is exact only where the same code computes it: on the same CPU model, with the same versions. Elsewhere the
numbers of fixed rollouts are compared with a tolerance, the weights are not, and sampled rollouts are skipped.

A change of the mathematics shows here first. If it is intended, record again and say in the commit why it moved:
python -m tests.trl.test_golden
If only the name of a metric changes, rename it in `NUMBERS` and in golden.json: the numbers must stay.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback

from tests.recorded import changed_conditions, conditions, one_thread
from tests.trl.rollout_worker import FixedRollouts
from tests.trl.tiny import GROUP, coin, mixed_rows, rows_with_pictures
from vgpo.checkpoints import weight_hash
from vgpo.toy import checkpoint_path
from vgpo.toy.model import build_model, build_processor
from vgpo.trl import VGPOConfig, VGPOTrainer

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 4
NUMBERS = (
    "loss", "grad_norm", "learning_rate", "reward", "reward_std", "kl", "entropy", "completions/mean_length",
    "clip_ratio/region_mean", "focus/mean", "focus/late_early_ratio",
    "focus/gate_rate", "shaping/dependency", "shaping/token_factor_spread", "shaping/rollout_factor_spread",
    "adaptive/strength", "adaptive/compensation", "sampling/rounds", "sampling/groups_drawn",
    "sampling/groups_too_easy", "sampling/groups_too_hard", "sampling/groups_cut",
)  # fmt: skip
# For another CPU or other versions. AVX2 in place of AVX-512 alone moves numbers by up to 5e-5 of their size.
RELATIVE, ABSOLUTE = 2e-3, 2e-5

DEFAULTS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "report_to": [],
    "logging_steps": 1,
    "save_strategy": "no",
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "num_generations": GROUP,
    "per_device_train_batch_size": 4 * GROUP,
    "max_completion_length": 8,
}
# Fixed rollouts of an untrained model, in the order of the dataset.
FIXED: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {"preset": "released"},
    "old_pass": {"per_device_train_batch_size": 2 * GROUP, "steps_per_generation": 2},
    "none": {"shaping": "none"},
    "entropy": {"shaping": "entropy"},
    "kl_perception": {"shaping": "kl_perception"},
    "pgpo": {"shaping": "pgpo"},
    "pepo": {"shaping": "pepo"},
    "adaptive": {"shaping": "adaptive"},
    "mixed": {"dataset": mixed_rows},
    "dynamic_sampling": {"dynamic_sampling": True},
    "lora": {"lora": True},
}
# Rollouts that the toy model samples.
# Four updates from one generation, and two from the next.
REUSED = {
    "per_device_train_batch_size": 2 * GROUP,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "beta": 0.04,
    "max_steps": 6,
    "lr_scheduler_type": "constant",  # a linear one would end after two steps in the run that stops there
}
SAMPLED: dict[str, dict[str, Any]] = {
    "sampled": {},
    "share_prompt_off": {"share_prompt": "off"},
    "sampled_mixed": {"dataset": mixed_rows},
    "sampled_dynamically": {"dynamic_sampling": True, "per_device_train_batch_size": 2 * GROUP},
    "reused_with_reference": REUSED,
    "lora_with_reference": {**REUSED, "lora": True},
}
# The setting that is also stopped after two steps and resumed: then two of the four updates of a generation are left.
RESUMED = "reused_with_reference"

Step = dict[str, str]


class Recorder(TrainerCallback):
    """Collects the numbers of each logged step as hexadecimal floats, and the hash of the weights after it."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        self.steps.append({"weights": weight_hash(model.named_parameters())})

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.steps[-1] |= {name: float(logs[name]).hex() for name in NUMBERS if name in logs}


def build(name: str, folder: Path, **changes: Any) -> VGPOTrainer:
    settings = {**DEFAULTS, **(FIXED | SAMPLED)[name], **changes}
    dataset = settings.pop("dataset", rows_with_pictures)(16)
    adapter = LoraConfig(r=2, target_modules=["q_proj"]) if settings.pop("lora", False) else None
    if name in FIXED:
        processor = build_processor()
        model = build_model(processor.tokenizer, seed=1)
        settings["shuffle_groups"] = False
    else:
        processor = AutoProcessor.from_pretrained(checkpoint_path(), padding_side="left")
        model = AutoModelForImageTextToText.from_pretrained(checkpoint_path())
        settings |= {"max_completion_length": 24, "learning_rate": 1e-4}
    return (FixedRollouts if name in FIXED else VGPOTrainer)(
        model=model,
        reward_funcs=coin,
        args=VGPOConfig(output_dir=str(folder), **settings),
        train_dataset=dataset,
        processing_class=processor,
        peft_config=adapter,
    )


def trajectory(trainer: VGPOTrainer, checkpoint: Path | None = None) -> list[Step]:
    """The steps of a training, from the start or from a checkpoint."""
    recorder = Recorder()
    trainer.add_callback(recorder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return recorder.steps


def differences(found: Step, recorded: Step, *, exact: bool) -> list[str]:
    """What differs in a step, name by name."""
    if not exact:
        found, recorded = ({name: v for name, v in step.items() if name != "weights"} for step in (found, recorded))
    lines = []
    for name in sorted(found.keys() | recorded.keys()):
        values = found.get(name), recorded.get(name)
        if None in values or not (values[0] == values[1] if exact else close(*values)):
            lines.append(f"{name} is {readable(name, values[0])}, recorded {readable(name, values[1])}")
    return lines


def close(found: str, recorded: str) -> bool:
    return math.isclose(float.fromhex(found), float.fromhex(recorded), rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def readable(name: str, value: str | None) -> str:
    return value if value is None or name == "weights" else f"{value} ({float.fromhex(value)!r})"


@pytest.mark.train
@pytest.mark.parametrize("name", FIXED | SAMPLED)
def test_trajectory_is_the_recorded_one(tmp_path: Path, name: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    recorded = golden["trajectories"][name]
    with one_thread():
        changes = changed_conditions(golden["conditions"])
        if changes and name in SAMPLED:
            pytest.skip(f"rounding can change a sampled token: {changes}")
        steps = trajectory(build(name, tmp_path))
    lines = [
        f"step {number}: {line}"
        for number, (step, expected) in enumerate(zip(steps, recorded, strict=True), start=1)
        for line in differences(step, expected, exact=not changes)
    ]
    how = f"to rel={RELATIVE:g}, because {changes}" if changes else "exactly, weights included"
    assert not lines, f"compared {how}:\n" + "\n".join(lines)


@pytest.mark.train
def test_a_run_that_stops_after_two_steps_and_is_resumed_has_the_same_trajectory(tmp_path: Path) -> None:
    with one_thread():
        uninterrupted = trajectory(build(RESUMED, tmp_path / "uninterrupted"))
        first = build(RESUMED, tmp_path / "resumed", max_steps=2, save_strategy="steps", save_steps=2)
        steps = trajectory(first)
        steps += trajectory(build(RESUMED, tmp_path / "resumed"), tmp_path / "resumed" / "checkpoint-2")
    assert len(uninterrupted) == REUSED["max_steps"]
    assert steps == uninterrupted


def record() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, one_thread():
        runs = {name: trajectory(build(name, Path(folder) / name)) for name in FIXED | SAMPLED}
        return {"conditions": conditions(), "trajectories": runs}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(record(), indent=1) + "\n")
