"""Every line of the table of methods trains the toy model, at the price that it says."""

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import torch

from tests.trl.tiny import coin
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.setup import Setup
from vgpo.shaping import SHAPINGS
from vgpo.toy import write_datasets
from vgpo.trl import VGPOTrainer

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
LINE = re.compile(r"^\| ([^|]+) \| `(--[^`]+)` \| (\d{4}\.\d{5}) \| ([^|]+) \| (\d) \| (\d) \|$", re.MULTILINE)
SMALL = "--per_device_train_batch_size 8 --max_completion_length 8 --max_steps 2 --learning_rate 1e-3 --use_cpu true"


class Method(NamedTuple):
    name: str
    words: list[str]
    source: str
    signals: set[str]
    extra_passes: dict[str, int]


def methods() -> list[Method]:
    lines = LINE.findall(PAGE.read_text(encoding="utf-8"))
    return [
        Method(
            name=name,
            words=shlex.split(words),
            source=source,
            signals=set(re.findall(r"`(\w+)`", signals)),
            extra_passes={"one": int(one), "several": int(several)},
        )
        for name, words, source, signals, one, several in lines
    ]


class Counted(VGPOTrainer):
    """Counts passes without a gradient, and those of them that tell the old policy's log-probabilities."""

    num_passes = num_old_passes = 0

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        self.num_passes += not torch.is_grad_enabled()
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _roll_out(self, rows: Any) -> Any:
        before = self.num_passes
        batch = super()._roll_out(rows)
        self.num_old_passes += self.num_passes - before
        return batch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        return write_datasets(folder, num_train=48, num_test=4, progress=False)[0]


UPDATES = {
    "one": "--gradient_accumulation_steps 2",
    "several": "--gradient_accumulation_steps 1 --steps_per_generation 2",
}


@pytest.mark.train
@pytest.mark.parametrize("updates", UPDATES)
@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_method(method: Method, updates: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words = [*method.words, *SMALL.split(), *UPDATES[updates].split()]
    where = ["--train_data", str(data), "--run_dir", str(tmp_path / "run")]
    recipe = load_recipe("quickstart_dapo", [*words, *where])
    setup = Setup(recipe, tmp_path)
    trainer = Counted(
        model=setup.model,
        args=recipe.config,
        reward_funcs=coin,
        train_dataset=setup.prompts,
        processing_class=setup.processor,
    )
    assert trainer.shaping.signals == method.signals
    start = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(not torch.equal(weight, start[name]) for name, weight in trainer.model.named_parameters())
    num_generations = {"one": 2, "several": 1}[updates]
    assert trainer.num_passes - trainer.num_old_passes == num_generations * method.extra_passes[updates]
    assert (trainer.num_old_passes > 0) == (updates == "several")


def test_every_shaping_is_in_the_table() -> None:
    named = {method.words[method.words.index("--shaping") + 1] for method in methods()}
    assert named == set(SHAPINGS)
    assert len(methods()) == PAGE.read_text(encoding="utf-8").count("| `--")
